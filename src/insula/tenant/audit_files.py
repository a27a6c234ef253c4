# SPDX-License-Identifier: Apache-2.0
"""The files of the audit log: what they are called, how they are rotated, and their lines, from either end.

    audit.log, audit.log.1 (older), … audit.log.9
    audit.head    number and hash of the last line, number of the first that is kept

What a line says stands in `audit.py`, whether it is right in `audit_chain.py`.  Source: pread(2), rename(2).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KEPT_FILES = 10
FIRST_PREV = "0" * 64
"""What the very first line says of the one before."""
HEAD = "audit.head"
MAX_LINE = 1 << 16
"""No line is longer."""
BLOCK = 1 << 16
"""So much is read at once: between two of them other threads have their turn."""


class Mark(NamedTuple):
    """Number and hash of a line."""

    number: int
    digest: str


class Head(NamedTuple):
    """What is kept beside the log, so that lines which are missing at either end are noticed."""

    last: Mark
    first: int
    """Number of the first line that is kept."""

    def encode(self) -> bytes:
        """Return it as it stands in its file: always of one length."""
        return f"{self.last.number:020d} {self.last.digest} {self.first:020d}\n".encode()


NEW = Head(Mark(0, FIRST_PREV), first=1)
"""Of a log without lines."""


class Line(NamedTuple):
    """Of a line what chains it."""

    mark: Mark
    prev: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the log, open, as far as it had been written at that moment."""

    name: str
    descriptor: int
    size: int
    changed_at: float
    """UTC seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The whole log at one moment."""

    parts: tuple[Part, ...]
    """The oldest first."""
    head: Head | None
    """None: there is none that can be read."""


def rotated(path: Path, number: int) -> Path:
    """Return a file's name: the higher the number, the older it is; 0 is the one that is written to."""
    return path.with_name(f"{path.name}.{number}") if number else path


def files_of(path: Path) -> list[Path]:
    """Return the files of the log that there are, the oldest first."""
    return [each for number in range(99, -1, -1) if (each := rotated(path, number)).exists()]


def read_head(path: Path) -> Head | None:
    """Return the head of a log, None if there is none that can be read."""
    try:
        words = path.with_name(HEAD).read_bytes().split()
        number, digest, first = int(words[0]), words[1].decode("ascii"), int(words[2])
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return Head(Mark(number, digest), first=first)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Log]:
    """Open all files of a log.  Who writes meanwhile rotates none of them away from the reader."""
    with contextlib.ExitStack() as until_read:
        parts = []
        for file in files_of(path):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            until_read.callback(os.close, descriptor)
            found = os.fstat(descriptor)
            parts.append(
                Part(name=file.name, descriptor=descriptor, size=found.st_size, changed_at=found.st_mtime)
            )
        yield Log(parts=tuple(parts), head=read_head(path))


def parse(text: bytes) -> Line | None:
    """Read a line without its end; None: it is none of this log."""
    try:
        fields = json.loads(text)
        number, prev, result = int(fields["n"]), str(fields["prev"]), str(fields["result"])
    except (ValueError, KeyError, TypeError):
        return None
    return Line(Mark(number, hashlib.sha256(text).hexdigest()), prev=prev, result=result)


def lines_of(part: Part) -> Iterator[bytes]:
    """Yield a file's lines with their ends, the oldest first.  The last may have none: it is cut off."""
    rest = b""
    for at in range(0, part.size, BLOCK):
        *whole, rest = (rest + os.pread(part.descriptor, min(BLOCK, part.size - at), at)).split(b"\n")
        yield from (text + b"\n" for text in whole)
    if rest:
        yield rest


def blocks_backwards(part: Part) -> Iterator[bytes]:
    """Yield a file's whole lines, some at once, the newest of them first."""
    end, rest = part.size, b""
    while end:
        begin = max(0, end - BLOCK)
        data = os.pread(part.descriptor, end - begin, begin) + rest
        data = data[: data.rfind(b"\n") + 1]
        cut = data.find(b"\n") + 1 if begin else 0
        end, rest = begin, data[:cut]
        yield data[cut:]


def lines_backwards(log: Log) -> Iterator[bytes]:
    """Yield the whole lines of a log without their ends, the newest first."""
    for part in reversed(log.parts):
        for block in blocks_backwards(part):
            yield from reversed(block.splitlines())


def cut_torn_end(descriptor: int) -> int:
    """Cut a last line that has no end: nobody lived to write the rest of it.  Returns: how many bytes that were."""
    size = os.fstat(descriptor).st_size
    begin = max(0, size - MAX_LINE)
    whole = begin + os.pread(descriptor, size - begin, begin).rfind(b"\n") + 1
    if whole < size and (whole > begin or begin == 0):
        os.ftruncate(descriptor, whole)
        return size - whole
    return 0


def rotate(path: Path) -> None:
    """Move each file to the next name.  Only where no name is free the oldest goes: a crash may have left one free."""
    free = next(
        (number for number in range(1, KEPT_FILES) if not rotated(path, number).exists()), KEPT_FILES - 1
    )
    for number in range(free, 0, -1):
        rotated(path, number - 1).replace(rotated(path, number))


def first_after_rotation(path: Path) -> int:
    """Return the number of the first line that is kept after the next rotation; 0: there is none."""
    files = files_of(path)
    for file in files[1:] if len(files) >= KEPT_FILES else files:
        with open(file, "rb") as opened_file:
            line = parse(opened_file.readline(MAX_LINE).rstrip(b"\n"))
        if line is not None:
            return line.mark.number
    return 0

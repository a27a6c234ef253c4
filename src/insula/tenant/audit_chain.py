# SPDX-License-Identifier: Apache-2.0
"""Read the audit log: whole, a tenant's part of it, and whether it is as it was written."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FIRST_PREV = "0" * 64
"""What the very first line says of the one before."""
MAX_LINE = 1 << 16


class Head(NamedTuple):
    """Number and hash of the last line."""

    number: int
    digest: str


class Verdict(NamedTuple):
    """What `verify` found."""

    lines: int
    files: int
    problem: str
    """Empty: every line is as it was written.  Else the first that is not: file, line, what is wrong."""


def files_of(path: Path) -> list[Path]:
    """Return the files of the log that there are, the oldest first."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in range(99, 0, -1))
    return [each for each in (*numbered, path) if each.exists()]


def read_head(path: Path) -> Head | None:
    """Return the head of a log, None if none has been written."""
    try:
        words = path.with_name("audit.head").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    return Head(int(words[0]), words[1]) if len(words) == 2 and words[0].isdigit() else None


def lines_of(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Yield (file, number in it, line) of the whole log, the oldest first."""
    for file in files_of(path):
        with open(file, "rb") as opened:
            number = 0
            while line := opened.readline(MAX_LINE):
                number += 1
                yield file, number, line


def verify(path: Path) -> Verdict:
    """Look whether each line follows the one before it, and the last one is the head."""
    head = read_head(path)
    before: Head | None = None
    count = 0
    for file, number, line in lines_of(path):
        where = f"{file.name}, line {number}"
        problem, this = _judge(line, before=before)
        if this is None:
            return Verdict(count, len(files_of(path)), f"{where}: {problem}")
        before = this
        count += 1
    end = before or Head(0, FIRST_PREV)
    problem = ""
    if head is not None and head != end:
        problem = (
            f"{path.name}: {head.number - end.number} lines are missing at the end"
            if head.number > end.number
            else f"{path.name}: the last line is not the one that was written last"
        )
    return Verdict(count, len(files_of(path)), problem)


def _judge(line: bytes, *, before: Head | None) -> tuple[str, Head | None]:
    if not line.endswith(b"\n"):
        return "it is cut off", None
    text = line[:-1]
    try:
        fields = json.loads(text)
        number, prev = int(fields["n"]), str(fields["prev"])
    except (ValueError, KeyError, TypeError):
        return "it is no line of this log", None
    # The oldest file that is kept begins with whatever was before it.
    if before is not None and number != before.number + 1:
        return f"number {number} follows {before.number}", None
    if before is not None and prev != before.digest:
        return f"line number {before.number} before it was changed", None
    if before is None and number == 1 and prev != FIRST_PREV:
        return "the first line names one before it", None
    return "", Head(number, hashlib.sha256(text).hexdigest())


def last_entries(path: Path, *, tenant: str | None, since: float, count: int) -> Iterator[bytes]:
    """Yield what `entries` does, only the last `count` of it."""
    yield from deque(entries(path, tenant=tenant, since=since), maxlen=count)


def entries(path: Path, *, tenant: str | None, since: float) -> Iterator[bytes]:
    """Yield the lines since a time (UTC seconds), of one tenant (by it, or about its things) or of all (None)."""
    for _, _, line in lines_of(path):
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields.get("at", 0.0) >= since and tenant in (None, fields.get("tenant")):
            yield line

# SPDX-License-Identifier: Apache-2.0
"""What a container's program wrote, line by line, also while it writes.

The spawner's log (`boot/stdio.py`) has records of what was read at once: a record may hold many lines, and a line may
span records.  A line without an end, such as a prompt, is given when nothing followed it for UNFINISHED_S; what follows
later is a line of its own.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from insula.boot.stdio import LOG_BYTES, RECORD
from insula.model import stream
from insula.model.errors import ProtocolError
from insula.model.grant import Grant
from insula.model.record import ContainerRecord, LogLine
from insula.runtime.context import Runtime

BATCH_BYTES = 1 << 16
"""So much is taken apart before others have their turn."""
MAX_TAIL_BATCHES = 1024
"""Thrice what a log holds at most."""
UNFINISHED_S = 0.05
MAX_LINE_BYTES = 1 << 20
"""A longer line is given in pieces, so that a program that never ends one costs no memory."""

KEPT_BYTES = 2 * LOG_BYTES
"""Of a log that moves with its container: what two files hold, after however many moves."""
MAX_MOVED_BYTES = 3 * LOG_BYTES
"""What is taken from another host."""
MAX_RECORD_BYTES = 1 << 20

_STREAMS = {stream.STDOUT: "stdout", stream.STDERR: "stderr"}


def open_logs(
    grant: Grant,
    runtime: Runtime,
    ref: str,
    *,
    tail: int | None = None,
    since: float | None = None,
    until: float | None = None,
    stdout: bool = True,
    stderr: bool = True,
    follow: bool = True,
) -> "LogReader":
    """Open the log of a container, running or not.

    follow: also what is written later; else the log ends with what is there now.
    tail: only so many of the last lines that are there already; None: all.
    since, until: UTC seconds.
    Returns: a reader that the caller closes.
    Raises: ContainerNotFound.
    """
    record = runtime.find(grant, ref)
    wanted = {"stdout"} if stdout else set()
    return LogReader(
        runtime.folders.log(record.id),
        tail=tail,
        since=since,
        until=until,
        streams=frozenset(wanted | ({"stderr"} if stderr else set())),
        follow=follow,
    )


def export_logs(runtime: Runtime, record: ContainerRecord) -> Iterator[bytes]:
    """Give what a container wrote, as records, for `import_logs` on another host: the newest KEPT_BYTES.

    Whole once its processes stand still; of a running container it is what was there in passing.
    """
    files, left = _Files(runtime.folders.log(record.id)), MAX_MOVED_BYTES
    excess = files.size() - KEPT_BYTES
    try:
        while records := files.read():
            for each in records:
                packed = RECORD.pack(each.time, each.kind, len(each.data)) + each.data
                if excess > 0:
                    excess -= len(packed)
                    continue
                left -= len(packed)
                if left < 0:
                    return
                yield packed
    finally:
        files.close()


def import_logs(runtime: Runtime, record: ContainerRecord, chunks: Iterable[bytes | bytearray]) -> int:
    """Put a log that came from another host before what the container writes here.  Returns: its size in bytes.

    The spawner may hold the log open already: only the older half, `log.1`, is written, all at once or not at all.
    Raises: ProtocolError for more than MAX_MOVED_BYTES or what is no log.
    """
    path = runtime.folders.log(record.id)
    older, arriving = path.with_name(path.name + ".1"), path.with_name(path.name + ".arriving")
    count = 0
    try:
        with open(
            os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            for piece in _checked(chunks, name=record.name):
                count += len(piece)
                file.write(piece)
        if count:
            arriving.replace(older)
    finally:
        arriving.unlink(missing_ok=True)
    return count


def _checked(chunks: Iterable[bytes | bytearray], *, name: str) -> Iterator[bytes]:
    """Cut a stream into its records, however it was cut on the way, and let nothing else through."""
    buffer, left = b"", MAX_MOVED_BYTES
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise ProtocolError(
                f"cannot take the log of `{name}`: it is greater than {MAX_MOVED_BYTES} bytes"
            )
        buffer, at = buffer + chunk, 0
        while len(buffer) - at >= RECORD.size:
            _moment, kind, length = RECORD.unpack_from(buffer, at)
            if kind not in _STREAMS or length > MAX_RECORD_BYTES:
                raise ProtocolError(f"cannot take the log of `{name}`: it holds what is no record")
            end = at + RECORD.size + length
            if end > len(buffer):
                break
            yield buffer[at:end]
            at = end
        buffer = buffer[at:]
    if buffer:
        raise ProtocolError(f"cannot take the log of `{name}`: its end is missing")


class LogReader:
    """An open log.  May be closed while another thread still reads: that read ends first, the next finds nothing."""

    def __init__(
        self,
        path: Path,
        *,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        streams: frozenset[str] = frozenset(_STREAMS.values()),
        follow: bool = True,
    ) -> None:
        self._files = _Files(path)
        if not follow:  # a program may write faster than this is read
            self._files.end_here()
        self._is_closed = False
        self._guard = threading.Lock()
        self._lines = {kind: _Splitter(name) for kind, name in _STREAMS.items() if name in streams}
        self._tail = tail
        self._since = since if since is not None else float("-inf")
        self._until = until if until is not None else float("inf")

    def close(self) -> None:
        with self._guard:
            self._is_closed = True
            self._files.close()

    def read(self) -> list[LogLine]:
        """Return the lines that are new, at most about BATCH_BYTES of them.  Empty: none for now."""
        with self._guard:
            return self._read() if not self._is_closed else []

    def _read(self) -> list[LogLine]:
        if self._tail is not None:
            last = deque(self._read_all(), maxlen=self._tail)
            self._tail = None
            if last:
                return [line.fact() for line in last]
        return [line.fact() for line in self._read_some()]

    def _read_all(self) -> Iterator["_Line"]:
        # Ends even if the program writes faster than this reads.
        for _ in range(MAX_TAIL_BATCHES):
            lines = self._read_some()
            if not lines:
                return
            yield from lines

    def _read_some(self) -> list["_Line"]:
        # Batches that hold no line of interest are passed over: an empty answer means the end.
        while True:
            is_idle, lines = True, []
            for record in self._files.read():
                is_idle = False
                if (splitter := self._lines.get(record.kind)) is not None:
                    lines += splitter.feed(record)
            if is_idle:
                if self._wait_for_rest():
                    continue
                lines = [line for each in self._lines.values() for line in each.flush()]
            found = [line for line in lines if self._since <= line.time <= self._until]
            if found or is_idle:
                return found

    def _wait_for_rest(self) -> bool:
        # Whether an unfinished line is so young that it is worth another look, after a short wait.
        begun = [each.last_time for each in self._lines.values() if each.is_unfinished]
        age = time.time() - max(begun, default=0.0)
        if not 0 <= age < UNFINISHED_S:
            return False
        return self._files.wait(UNFINISHED_S - age)


class _Record(NamedTuple):
    time: float
    kind: int
    data: bytes


class _Line(NamedTuple):
    time: float
    stream: str
    data: bytes

    def fact(self) -> LogLine:
        return LogLine(time=self.time, stream=self.stream, text=self.data.decode("utf-8", "surrogateescape"))


class _Splitter:
    """The lines of one stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._rest_time = 0.0
        self.last_time = 0.0

    @property
    def is_unfinished(self) -> bool:
        return bool(self._rest)

    def feed(self, record: _Record) -> list[_Line]:
        first, *others = record.data.split(b"\n")
        self.last_time = record.time
        begun = self._rest_time if self._rest else record.time
        if not others:
            self._rest += first
            self._rest_time = begun
            return self.flush() if len(self._rest) > MAX_LINE_BYTES else []
        lines = [_Line(begun, self._name, self._rest + first)]
        self._rest = others.pop()
        self._rest_time = record.time
        lines += [_Line(record.time, self._name, each) for each in others]
        return lines

    def flush(self) -> list[_Line]:
        """Give up waiting for the end of a line."""
        rest, self._rest = self._rest, b""
        return [_Line(self._rest_time, self._name, rest)] if rest else []


class _Files:
    """The records of `path`.1 and `path`, whatever is renamed meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(path.name + ".1")
        self._open: list[int] = []
        """The file that is read, then those after it."""
        self._buffer = b""
        self._left_bytes: int | None = None
        """Until the end that was set; None: there is none."""
        self._find_next()

    def end_here(self) -> None:
        """Give only what is there now.  To be called before the first read."""
        self._left_bytes = self.size()

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def read(self) -> list[_Record]:
        """Read records, in the order they were written.  Empty: none for now."""
        while True:
            if not self._open:
                self._find_next()
            if not self._open or self._left_bytes == 0:
                return []
            # Looked for before the last read: once there is a next file nothing more comes into this one.
            has_next = len(self._open) > 1 or self._find_next()
            data = os.read(self._open[0], min(BATCH_BYTES, self._left_bytes or BATCH_BYTES))
            if data:
                if self._left_bytes is not None:
                    self._left_bytes -= len(data)
                if records := self._parse(data):
                    return records
            elif not has_next:
                return []
            else:
                self._buffer = b""
                os.close(self._open.pop(0))

    def size(self) -> int:
        """Return the bytes of what is there now."""
        return sum(os.fstat(each).st_size for each in self._open)

    def wait(self, seconds: float) -> bool:
        """Wait for more.  Answers whether it came."""
        if self._left_bytes == 0:
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if os.fstat(self._open[0]).st_size > os.lseek(self._open[0], 0, os.SEEK_CUR) or self._find_next():
                return True
            _pause(min(left, 0.01))
        return False

    def _find_next(self) -> bool:
        # Open what follows the file at hand: the log itself if it is another one by now, before it what became `.1`
        # in between.  The log is opened first: so `.1` is that file or a newer one, never an older.
        known = {_inode(each) for each in self._open}
        newest = _opened(self._path)
        if newest < 0 and known:
            return False  # between rename and creation: the next look finds it
        found: list[int] = []
        for descriptor in (newest, _opened(self._older) if newest < 0 or _inode(newest) not in known else -1):
            if descriptor >= 0 and _inode(descriptor) not in known:
                known.add(_inode(descriptor))
                found.insert(0, descriptor)
            elif descriptor >= 0:
                os.close(descriptor)
        self._open += found
        return bool(found)

    def _parse(self, data: bytes) -> list[_Record]:
        buffer, records, at = self._buffer + data, [], 0
        while len(buffer) - at >= RECORD.size:
            moment, kind, length = RECORD.unpack_from(buffer, at)
            if kind not in _STREAMS or length > BATCH_BYTES:
                at = len(buffer)  # torn by a full disk: go on with what comes
                break
            end = at + RECORD.size + length
            if end > len(buffer):
                break
            records.append(_Record(moment, kind, buffer[at + RECORD.size : end]))
            at = end
        self._buffer = buffer[at:]
        return records


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _pause(seconds: float) -> None:
    # Nothing tells of a file that grows in another process: the shortest pause that costs little.
    select.poll().poll(seconds * 1000)

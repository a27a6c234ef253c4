# SPDX-License-Identifier: Apache-2.0
"""What a container's program wrote, line by line, also while it writes.

The spawner's log (`log_files.py`) has records of what was read at once: a record may hold many lines, and a line may
span records.  A line without an end, such as a prompt, is given when nothing followed it for UNFINISHED_S; what follows
later is a line of its own.

A log may be of nothing but line ends, millions of them: what is held of it at once is bounded, and so is what is done
before others have their turn.  For the last of its lines these are counted first, and then read from where they begin.
"""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from insula.boot.stdio import LOG_BYTES, RECORD
from insula.model.errors import ProtocolError
from insula.model.grant import Grant
from insula.model.record import ContainerRecord, LogLine
from insula.runtime.context import Runtime
from insula.runtime.log_files import BATCH_BYTES, STREAMS, LogFiles, Place, Record

LINE_BYTES = 64
"""What a line costs beside its text, of BATCH_BYTES that are given at once: the shortest is 55 bytes of JSON."""
UNFINISHED_S = 0.05
MAX_LINE_BYTES = 1 << 20
"""A longer line is given in pieces, so that a program that never ends one costs no memory."""

KEPT_BYTES = 2 * LOG_BYTES
"""Of a log that moves with its container: what two files hold, after however many moves."""
MAX_MOVED_BYTES = 3 * LOG_BYTES
"""What is taken from another host."""
MAX_RECORD_BYTES = 1 << 20


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
    files, left = LogFiles(runtime.folders.log(record.id)), MAX_MOVED_BYTES
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
            if kind not in STREAMS or length > MAX_RECORD_BYTES:
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
        streams: frozenset[str] = frozenset(STREAMS.values()),
        follow: bool = True,
    ) -> None:
        wanted = _Wanted(
            since if since is not None else float("-inf"),
            until if until is not None else float("inf"),
            streams,
        )
        files = LogFiles(path)
        self._tail = tail or 0
        try:
            self._counted = None if tail is None else _Walk(files.as_it_is(), wanted)
            """What is there already, until its lines are counted."""
        except OSError:
            files.close()
            raise
        if not follow:  # a program may write faster than this is read
            files.end_here()
        self._walk = _Walk(files, wanted)
        self._marks = [_Mark(0, Place(0, 0))]
        self._excess = 0
        """So many lines are passed over."""
        self._lines: Iterator[LogLine] = iter(())
        """Of what has been read those that have not been given."""
        self._is_closed = False
        self._guard = threading.Lock()

    def close(self) -> None:
        with self._guard:
            self._is_closed = True
            self._walk.files.close()
            if self._counted is not None:
                self._counted.files.close()

    def read(self) -> list[LogLine] | None:
        """Return the lines that are new, some of them: of about BATCH_BYTES, and found in as many.

        Returns: None if there are none for now; an empty list if none is wanted among those that were looked at.
        """
        with self._guard:
            return self._read() if not self._is_closed else None

    def _read(self) -> list[LogLine] | None:
        if self._counted is not None:
            self._count(self._counted)
            return []
        if batch := self._batch():
            return batch
        runs = self._walk.read()
        if runs is None:
            if self._walk.wait_for_rest():
                return []
            runs = self._walk.flush()
            if not runs:
                return None
        self._lines = self._lines_of(runs)
        return self._batch()

    def _count(self, walk: "_Walk") -> None:
        runs = walk.read()
        self._excess += sum(map(_Run.count_lines, walk.flush() if runs is None else runs))
        if runs is None:
            self._excess = max(0, self._excess - self._tail)
            mark = self._marks[bisect_right(self._marks, self._excess, key=lambda each: each.lines) - 1]
            self._walk.files.go_to(mark.place)
            self._excess -= mark.lines
            self._counted = None
            walk.files.close()
        elif walk.is_between_lines:
            self._marks.append(_Mark(self._excess, walk.files.place))

    def _lines_of(self, runs: Iterable["_Run"]) -> Iterator[LogLine]:
        for run in runs:
            if self._excess and (count := run.count_lines()) <= self._excess:
                self._excess -= count
                continue
            passed, self._excess = self._excess, 0
            yield from islice(run.lines(), passed, None)

    def _batch(self) -> list[LogLine]:
        found, left = [], BATCH_BYTES
        for line in self._lines:
            found.append(line)
            left -= LINE_BYTES + len(line.text)
            if left <= 0:
                break
        return found


class _Mark(NamedTuple):
    """A place where a line of each stream begins."""

    lines: int
    """So many are before it."""
    place: Place


class _Wanted(NamedTuple):
    since: float
    until: float
    streams: frozenset[str]


class _Run(NamedTuple):
    """Lines of one stream and one moment."""

    time: float
    stream: str
    data: bytes
    """Without the last one's end."""

    def count_lines(self) -> int:
        return self.data.count(b"\n") + 1

    def lines(self) -> Iterator[LogLine]:
        # One after the other: a list of all of them is a hundred times as large.
        at = 0
        while (end := self.data.find(b"\n", at)) >= 0:
            yield self._line(self.data[at:end])
            at = end + 1
        yield self._line(self.data[at:])

    def _line(self, data: bytes) -> LogLine:
        return LogLine(time=self.time, stream=self.stream, text=data.decode("utf-8", "surrogateescape"))


class _Walk:
    """One way through a log, from its beginning on."""

    def __init__(self, files: LogFiles, wanted: _Wanted) -> None:
        self.files = files
        self._wanted = wanted
        self._splitters = {kind: _Splitter(name) for kind, name in STREAMS.items() if name in wanted.streams}

    @property
    def is_between_lines(self) -> bool:
        return not any(each.is_unfinished for each in self._splitters.values())

    def read(self) -> list[_Run] | None:
        """Return what is wanted of the next BATCH_BYTES.  None: there are none for now."""
        records = self.files.read()
        if not records:
            return None
        return self._wanted_of(
            run
            for record in records
            if (splitter := self._splitters.get(record.kind)) is not None
            for run in splitter.feed(record)
        )

    def flush(self) -> list[_Run]:
        """Return the unfinished lines."""
        return self._wanted_of(run for each in self._splitters.values() for run in each.flush())

    def wait_for_rest(self) -> bool:
        """Wait shortly, if an unfinished line is so young that it is worth another look.  Answers whether more came."""
        begun = [each.last_time for each in self._splitters.values() if each.is_unfinished]
        age = time.time() - max(begun, default=0.0)
        if not 0 <= age < UNFINISHED_S:
            return False
        return self.files.wait(UNFINISHED_S - age)

    def _wanted_of(self, runs: Iterable[_Run]) -> list[_Run]:
        return [run for run in runs if self._wanted.since <= run.time <= self._wanted.until]


class _Splitter:
    """The lines of one stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = bytearray()
        self._rest_time = 0.0
        self.last_time = 0.0

    @property
    def is_unfinished(self) -> bool:
        return bool(self._rest)

    def feed(self, record: Record) -> list[_Run]:
        self.last_time = record.time
        if not self._rest:
            self._rest_time = record.time
        end = record.data.rfind(b"\n")
        if end < 0:
            self._rest += record.data
            return self.flush() if len(self._rest) > MAX_LINE_BYTES else []
        runs, start = [], 0
        if self._rest:
            first_end = record.data.find(b"\n")
            self._rest += record.data[:first_end]
            runs, start = self.flush(), first_end + 1
        if start <= end:
            runs.append(_Run(record.time, self._name, record.data[start:end]))
        self._rest += record.data[end + 1 :]
        self._rest_time = record.time
        return runs

    def flush(self) -> list[_Run]:
        """Give up waiting for the end of a line."""
        if not self._rest:
            return []
        run = _Run(self._rest_time, self._name, bytes(self._rest))
        self._rest.clear()
        return [run]

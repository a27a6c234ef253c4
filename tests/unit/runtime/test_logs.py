# SPDX-License-Identifier: Apache-2.0
"""Logs: records to lines, tail, times, and a log that is turned over while it is read."""

import errno
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.boot import stdio
from insula.boot.stdio import RECORD, Log
from insula.model import stream
from insula.model.record import LogLine
from insula.runtime import log_files, logs
from insula.runtime.log_files import BATCH_BYTES
from insula.runtime.logs import LINE_BYTES, LogReader

LONG_AGO = 1000.0
Written = tuple[float, int, bytes]
"""When, which stream, what."""


def record(data: bytes, *, at: float = LONG_AGO, kind: int = stream.STDOUT) -> bytes:
    return RECORD.pack(at, kind, len(data)) + data


def everything(reader: LogReader) -> list[LogLine]:
    found = []
    while (lines := reader.read()) is not None:
        found += lines
    return found


def texts(path: Path, **wishes: object) -> list[str]:
    with closing(LogReader(path, **wishes)) as reader:  # type: ignore[arg-type]
        return [line.text for line in everything(reader)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"


def test_a_log_that_was_never_written_has_no_lines(log: Path) -> None:
    assert texts(log) == []


def test_older_records_come_first(log: Path) -> None:
    (log.parent / "log.1").write_bytes(record(b"one\ntw"))
    log.write_bytes(record(b"o\nthree\n"))
    assert texts(log) == ["one", "two", "three"]


def test_streams_are_split_apart(log: Path) -> None:
    log.write_bytes(
        record(b"out")
        + record(b"err", kind=stream.STDERR)
        + record(b"1\n")
        + record(b"2\n", kind=stream.STDERR)
    )
    with closing(LogReader(log)) as reader:
        assert [(line.stream, line.text) for line in everything(reader)] == [
            ("stdout", "out1"),
            ("stderr", "err2"),
        ]
    assert texts(log, streams=frozenset({"stderr"})) == ["err2"]


def test_bytes_that_are_not_utf8_are_kept(log: Path) -> None:
    log.write_bytes(record(b"\xffx\n"))
    assert texts(log) == ["\udcffx"]


def test_a_prompt_without_a_line_end_appears(log: Path) -> None:
    log.write_bytes(record(b"ready\nlogin: "))
    assert texts(log) == ["ready", "login: "]


def test_a_fresh_prompt_appears_after_a_moment(log: Path) -> None:
    log.write_bytes(record(b"login: ", at=time.time()))
    assert texts(log) == ["login: "]


def test_times_limit_what_is_read(log: Path) -> None:
    log.write_bytes(b"".join(record(b"%d\n" % at, at=at) for at in range(10)))
    assert texts(log, since=3.0, until=5.0) == ["3", "4", "5"]


def test_a_line_has_the_time_of_its_first_byte(log: Path) -> None:
    log.write_bytes(record(b"a", at=1.0) + record(b"b", at=2.0) + record(b"c\nd\n", at=3.0))
    with closing(LogReader(log)) as reader:
        assert [(line.time, line.text) for line in everything(reader)] == [(1.0, "abc"), (3.0, "d")]


@pytest.mark.parametrize(("tail", "expected"), [(0, []), (2, ["8", "9"]), (100, [str(n) for n in range(10)])])
def test_tail_gives_the_last_lines_and_then_what_follows(log: Path, tail: int, expected: list[str]) -> None:
    (log.parent / "log.1").write_bytes(b"".join(record(b"%d\n" % n) for n in range(5)))
    log.write_bytes(b"".join(record(b"%d\n" % n) for n in range(5, 10)))
    with closing(LogReader(log, tail=tail)) as reader:
        assert [line.text for line in everything(reader)] == expected
        with log.open("ab") as file:
            file.write(record(b"later\n"))
        assert [line.text for line in everything(reader)] == ["later"]


def test_a_record_that_is_half_written_is_waited_for(log: Path) -> None:
    whole = record(b"hello\n")
    log.write_bytes(whole[:18])
    with closing(LogReader(log)) as reader:
        assert everything(reader) == []
        with log.open("ab") as file:
            file.write(whole[18:])
        assert [line.text for line in everything(reader)] == ["hello"]


def test_garbage_of_a_full_disk_does_not_end_the_log(log: Path) -> None:
    log.write_bytes(record(b"one\n") + b"\xff" * 40)
    with closing(LogReader(log)) as reader:
        assert [line.text for line in everything(reader)] == ["one"]
        with log.open("ab") as file:
            file.write(record(b"two\n"))
        assert [line.text for line in everything(reader)] == ["two"]


def test_a_line_without_end_costs_no_memory(log: Path) -> None:
    log.write_bytes(record(b"x" * 65536) * 40)
    found = texts(log)
    assert sum(map(len, found)) == 40 * 65536
    assert max(map(len, found)) < 2 << 20


@settings(max_examples=30)
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_a_follower_sees_every_line_of_a_log_that_is_turned_over(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdio, "LOG_BYTES", 40 * (RECORD.size + 4))
        log = Log(str(path))
        with closing(log), closing(LogReader(path)) as reader:
            seen: list[str] = []
            count = 0
            for step in steps:  # at most 30 of 41 lines a file, so that none is lost between two looks
                for _ in range(step):
                    log.write(stream.STDOUT, b"%03d\n" % count)
                    count += 1
                seen += [line.text for line in everything(reader)]
    assert seen == [f"{n:03d}" for n in range(count)]


def test_a_follower_reads_both_files_after_two_turns(log: Path) -> None:
    log.write_bytes(record(b"a\n"))
    with closing(LogReader(log)) as reader:
        assert [line.text for line in everything(reader)] == ["a"]
        with log.open("ab") as file:
            file.write(record(b"b\n"))
        log.rename(log.parent / "log.1")
        log.write_bytes(record(b"c\n"))
        log.rename(log.parent / "log.1")
        log.write_bytes(record(b"d\n"))
        assert [line.text for line in everything(reader)] == ["b", "c", "d"]


def test_without_following_a_log_ends_with_what_was_there(log: Path) -> None:
    """A program that writes faster than this is read would have it go on for ever."""
    (log.parent / "log.1").write_bytes(record(b"a\n"))
    log.write_bytes(record(b"b\n"))
    with closing(LogReader(log, follow=False)) as reader:
        found = []
        while (lines := reader.read()) is not None:
            found += [line.text for line in lines]
            with log.open("ab") as file:
                file.write(record(b"later\n"))
        assert found == ["a", "b"]
    assert texts(log, follow=False, tail=1) == ["later"]


def test_a_log_keeps_no_more_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), kept_bytes=1 << 16)
    for _ in range(200):
        log.write(1, b"x" * 1000)
    log.write(1, b"y" * (1 << 17))
    log.close()
    kept = sum(each.stat().st_size for each in tmp_path.iterdir())
    assert kept <= (1 << 16) + (1 << 15) + 3000


def test_a_read_ends_before_its_files_are_closed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is closed under a read may be another file's by then."""
    log.write_bytes(record(b"begun", at=time.time()))
    reader = LogReader(log)
    closer = threading.Thread(target=reader.close)

    def pause(_seconds: float) -> None:
        if closer.ident is None:
            closer.start()
            closer.join(0.2)

    monkeypatch.setattr(log_files, "_pause", pause)
    assert reader.read() == []
    reader.read()
    closer.join()
    assert reader.read() is None


BARE = {
    "a record each": record(b"\n") * (1 << 16),
    "many a record": record(b"\n" * (1 << 15)) * 2,
}


@pytest.mark.parametrize("content", BARE.values(), ids=BARE)
def test_a_log_of_bare_line_ends_is_given_in_small_batches(log: Path, content: bytes) -> None:
    log.write_bytes(content)
    count = largest = 0
    with closing(LogReader(log, tail=10**8, follow=False)) as reader:
        tracemalloc.start()
        while (lines := reader.read()) is not None:
            size = sum(LINE_BYTES + len(line.text) for line in lines)
            largest, count = max(largest, size), count + len(lines)
            del lines
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 1 << 16
    assert largest <= 2 * BATCH_BYTES
    assert peak < 64 * BATCH_BYTES


@pytest.mark.parametrize("wishes", [{"since": 2 * LONG_AGO}, {"tail": 1}, {"streams": frozenset({"stderr"})}])
def test_what_is_passed_over_is_read_a_batch_at_a_time(
    log: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, object]
) -> None:
    log.write_bytes(record(b"x\n") * 10_000)
    reads: list[int] = []

    def counted(*words: int) -> bytes:
        reads.append(1)
        return pread(*words)

    pread = os.pread
    monkeypatch.setattr(os, "pread", counted)
    with closing(LogReader(log, **wishes)) as reader:  # type: ignore[arg-type]
        while reader.read() is not None:
            assert len(reads) <= 2
            reads.clear()


def simply(written: list[Written], *, tail: int | None, since: float, until: float) -> list[LogLine]:
    """What a log's lines are, by the words of the documentation."""
    names = {stream.STDOUT: "stdout", stream.STDERR: "stderr"}
    begun: dict[int, tuple[float, bytes]] = {}
    found = []

    def add(kind: int) -> None:
        at, data = begun.pop(kind)
        if since <= at <= until:
            found.append(LogLine(time=at, stream=names[kind], text=data.decode()))

    for at, kind, data in written:
        for each in data.splitlines(keepends=True):
            before = begun.get(kind, (at, b""))
            begun[kind] = before[0], before[1] + each.removesuffix(b"\n")
            if each.endswith(b"\n"):
                add(kind)
    for kind in sorted(begun):
        add(kind)
    return found if tail is None else found[len(found) - min(tail, len(found)) :]


@settings(max_examples=300)
@given(
    written=st.lists(
        st.tuples(
            st.integers(1, 5).map(float),
            st.sampled_from([stream.STDOUT, stream.STDERR]),
            st.text("a\n", min_size=1, max_size=30).map(str.encode),
        ),
        max_size=25,
    ),
    turned_at=st.integers(0, 25),
    tail=st.none() | st.integers(0, 40),
    since=st.integers(0, 5),
    until=st.integers(1, 6),
    follow=st.booleans(),
)
def test_in_whatever_batches_it_is_the_same_log(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[Written],
    turned_at: int,
    tail: int | None,
    since: int,
    until: int,
    follow: bool,
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    parts = {"log.1": written[:turned_at], "log": written[turned_at:]}
    for name, part in parts.items():
        path.with_name(name).write_bytes(b"".join(record(data, at=at, kind=kind) for at, kind, data in part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "BATCH_BYTES", 100)
        patch.setattr(logs, "BATCH_BYTES", 100)
        with closing(LogReader(path, tail=tail, since=since, until=until, follow=follow)) as reader:
            found = everything(reader)
    assert found == simply(written, tail=tail, since=since, until=until)


def test_the_tail_is_that_of_the_moment_when_it_is_opened(log: Path) -> None:
    """A program that writes faster than its lines are counted would have them counted for ever."""
    log.write_bytes(record(b"a\nb\n"))
    with closing(LogReader(log, tail=1)) as reader:
        with log.open("ab") as file:
            file.write(record(b"c\n"))
        log.rename(log.parent / "log.1")
        log.write_bytes(record(b"d\n"))
        assert [line.text for line in everything(reader)] == ["b", "c", "d"]


def test_a_closed_log_leaves_nothing_open(log: Path) -> None:
    log.write_bytes(record(b"a\nb\n"))
    before = os.listdir("/proc/self/fd")
    LogReader(log, tail=1).close()
    with closing(LogReader(log, tail=1)) as reader:
        everything(reader)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("call", ["open", "dup"])
@pytest.mark.parametrize("left", [0, 1])
def test_without_free_descriptors_a_log_leaves_none_open(
    log: Path, monkeypatch: pytest.MonkeyPatch, call: str, left: int
) -> None:
    """Else one who asks on and on would keep all of insulad without them."""
    log.write_bytes(record(b"b\n"))
    log.with_name("log.1").write_bytes(record(b"a\n"))
    before, real, free = os.listdir("/proc/self/fd"), getattr(os, call), [left]

    def few(*words: object, **options: object) -> int:
        if not free[0]:
            raise OSError(errno.EMFILE, "too many open files")
        free[0] -= 1
        return int(real(*words, **options))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, few)
        with pytest.raises(OSError, match="too many"):
            LogReader(log, tail=1)
    assert os.listdir("/proc/self/fd") == before

# SPDX-License-Identifier: Apache-2.0
"""Logs: records to lines, tail, times, and a log that is turned over while it is read."""

import threading
import time
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
from insula.runtime import logs
from insula.runtime.logs import LogReader

LONG_AGO = 1000.0


def record(data: bytes, *, at: float = LONG_AGO, kind: int = stream.STDOUT) -> bytes:
    return RECORD.pack(at, kind, len(data)) + data


def everything(reader: LogReader) -> list[LogLine]:
    found = []
    while lines := reader.read():
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
        while lines := reader.read():
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

    monkeypatch.setattr(logs, "_pause", pause)
    reader.read()
    closer.join()
    assert reader.read() == []

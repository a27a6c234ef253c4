# SPDX-License-Identifier: Apache-2.0
"""The matrix of programs: its entries, its page, and that its clients notice what they are there to notice."""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.matrix import results
from tests.matrix.client import KINDS, Load
from tests.matrix.program import Program
from tests.matrix.programs import FAMILIES, PROGRAMS
from tests.matrix.protocols import Http, Lines, Redis, Stream
from tests.matrix.results import Results, Row
from tests.matrix.wire import Counted, WrongAnswer

from waiting import DEADLINE_S

ROW = Row(name="b", note="", client="lines × 1", moves=5, carried=5, answers=9, rest_ms=1.0, gap_ms=80.4)


def test_there_are_many_programs_and_no_name_stands_twice() -> None:
    assert sum(len(family.PROGRAMS) for family in FAMILIES) == len(PROGRAMS) >= 30


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_an_entry_can_be_run(program: Program) -> None:
    assert program.client in KINDS
    assert re.fullmatch(r"[a-z0-9-]+", program.name)
    assert program.packages and program.note
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", pin) for pin in program.pypi)
    assert re.search(r"\bexec ", program.script), "the program itself is to be the container's"


def test_the_page_is_drawn_from_the_results() -> None:
    assert results.PAGE.read_text(encoding="utf-8") == results.render(results.load())


def test_what_was_not_run_keeps_its_row(tmp_path: Path) -> None:
    path, page = tmp_path / "r.json", tmp_path / "p.md"
    before = Results(kernel="k", criu="c", rows={"b": ROW, "a": replace(ROW, name="a", refused="cannot")})
    results.save(before, path=path, page=page)
    assert results.load(path) == before
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| a", "| b"]
    assert lines[1].endswith("| 80 ms | 0 ms | cannot |")


def test_a_lost_write_stands_out_and_bars_do_not_break_the_table() -> None:
    text = results.render(Results(rows={"b": replace(ROW, problem="got 1 | instead of 2\n")}))
    assert "**got 1 \\| instead of 2 **" in text
    assert "1 programs with a client that lost something" in text


@pytest.mark.parametrize("answer", [1, 3, 0])
def test_a_count_that_does_not_follow_is_noticed(answer: int) -> None:
    counted = Counted()
    counted.take(1)
    with pytest.raises(WrongAnswer):
        counted.take(answer)


@contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, int]]:
    """Serve one connection, line by line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    connection.sendall(answer(line))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join()


def test_lines_are_answered_by_the_next_number() -> None:
    numbers = iter((b"1\n", b"2\n", b"4\n"))
    with server(lambda _: next(numbers)) as where:
        session = Lines(*where)
        session.ask(1)
        session.ask(2)
        with pytest.raises(WrongAnswer, match="4 after 2"):
            session.ask(3)
        session.close()


def test_a_write_that_redis_forgot_is_found_at_the_end() -> None:
    answers = {b"RPUSH": b":1\r\n", b"LRANG": b"*0\r\n"}
    with server(lambda line: answers[line[:5]]) as where:
        session = Redis(*where)
        session.ask(1)
        with pytest.raises(WrongAnswer):
            session.verify(1)
        session.close()


def test_a_body_in_pieces_is_put_together() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(lambda line: head + b"1\r\n4\r\n1\r\n2\r\n0\r\n\r\n" if line == b"\r\n" else b"") as where:
        session = Http(*where, "same", "/", "42")
        session.ask(1)
        session.close()


def test_a_stream_with_a_hole_is_noticed() -> None:
    words = b"".join(b"%d\n" % number for number in range(1, 500) if number != 250)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        session = Stream(*listener.getsockname()[:2])
        connection, _ = listener.accept()
        with connection:
            connection.sendall(words)
            session.ask(1)
            with pytest.raises(WrongAnswer, match="251 after 249"):
                session.ask(2)
        session.close()


class _Broken:
    """Its connection breaks at the second request."""

    def __init__(self) -> None:
        self.broke = threading.Event()

    def ask(self, number: int) -> None:
        if number == 2:
            self.broke.set()
            raise ConnectionResetError("reset")

    def verify(self, total: int) -> None:
        raise AssertionError("nothing is verified after a failure")

    def close(self) -> None: ...

    def orders(self) -> Iterator[str]:
        """Standard input: it ends after the failure."""
        assert self.broke.wait(DEADLINE_S)
        yield from ()


def test_a_broken_connection_is_never_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _Broken()
    monkeypatch.setattr(sys, "stdin", broken.orders())
    outcome = Load([broken]).run()
    assert (outcome.answers, outcome.problem) == (1, "ConnectionResetError: reset")

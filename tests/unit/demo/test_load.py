# SPDX-License-Identifier: Apache-2.0
"""The clients count right: what is lost, what failed, how long it was silent; proven against servers that misbehave."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from demo.load import CHUNK, MOST_BEHIND_S, Connection, Counter, Http, Redis, Rewriting, chunks, value
from hypothesis import given
from hypothesis import strategies as st

from waiting import DEADLINE_S


@given(st.integers(0, 10**12), st.integers(1, 50))
def test_answers_that_count_up_lose_nothing(first: int, count: int) -> None:
    counter = Counter()
    for answer in range(first, first + count):
        counter.take(answer, waited_s=0.001)
    assert (counter.outcome.requests, counter.outcome.lost, counter.outcome.failed) == (count, 0, 0)


@given(st.integers(1, 1000), st.integers(1, 500))
def test_a_counter_that_fell_back_has_lost_as_much(first: int, back: int) -> None:
    counter = Counter()
    counter.take(first + back, waited_s=0)
    counter.take(first + 1, waited_s=0)
    counter.take(first + 2, waited_s=0)
    assert counter.outcome.lost == back


def test_the_answer_after_a_failure_is_not_judged_and_the_first_reason_is_kept() -> None:
    counter = Counter()
    counter.take(7, waited_s=0)
    counter.fail("reset")
    counter.fail("refused")
    counter.take(9, waited_s=0)
    assert (counter.outcome.failed, counter.outcome.lost, counter.outcome.reason) == (2, 0, "reset")


def test_gaps_are_told_since_the_last_time_and_kept_for_the_whole() -> None:
    counter = Counter()
    counter.take(1, waited_s=0.2)
    assert counter.take_gap_ms() == pytest.approx(200)
    counter.take(2, waited_s=0.05)
    assert counter.take_gap_ms() == pytest.approx(50)
    assert counter.outcome.longest_gap_ms == pytest.approx(200)


def test_data_is_the_same_each_time_and_no_two_values_are_alike() -> None:
    first = list(chunks(1))
    assert first == list(chunks(1))
    assert {len(each) for each in first} == {CHUNK}
    assert len(set(first)) == len(first) == 10


def test_a_rewritten_value_is_another_one_of_the_same_length() -> None:
    assert value(3) == list(chunks(1))[3]
    assert value(3, version=1) != value(3)
    assert len(value(3, version=1)) == CHUNK


def test_values_are_rewritten_at_the_wished_rate_and_a_long_pause_is_not_made_up_for() -> None:
    rewriting = Rewriting(2, mb_s=20.0)
    assert rewriting.due(100.0) is not None
    while rewriting.due(100.0) is not None:
        pass
    later = [rewriting.due(100.0 + step / 1000) for step in range(1, 1001)]
    assert sum(each is not None for each in later) == pytest.approx(200, abs=2)
    assert {each for each in later if each is not None} == set(range(20))
    behind = 0
    while rewriting.due(200.0) is not None:
        behind += 1
    assert behind == pytest.approx(MOST_BEHIND_S * 200, abs=2)


def test_nothing_is_rewritten_unless_it_is_wished() -> None:
    assert Rewriting(2).due(100.0) is None


@contextmanager
def server(*answers: bytes) -> Iterator[Connection]:
    """Answer each request in turn with the given bytes, then close."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                for answer in answers:
                    accepted.recv(65536)
                    for byte in answer:  # in the smallest pieces, as a network may
                        accepted.sendall(bytes([byte]))

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection("127.0.0.1", listener.getsockname()[1])
        try:
            yield connection
        finally:
            connection.close()
            thread.join(timeout=DEADLINE_S)


def test_redis_answers_are_read_and_its_errors_are_failures() -> None:
    with server(b":41\r\n", b"-ERR full\r\n") as connection:
        redis = Redis(connection)
        assert redis.ask() == 41
        with pytest.raises(ConnectionError, match="ERR full"):
            redis.ask()
        with pytest.raises(ConnectionError):
            redis.ask()


def test_web_answers_are_read_on_one_connection_and_other_statuses_are_failures() -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n12\n"
    bad = b"HTTP/1.1 503 No\r\ncontent-length: 1\r\n\r\nx"
    with server(good, good, bad) as connection:
        web = Http(connection)
        assert (web.ask(), web.ask()) == (12, 12)
        with pytest.raises(ConnectionError, match="503"):
            web.ask()

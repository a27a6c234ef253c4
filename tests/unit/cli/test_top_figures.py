# SPDX-License-Identifier: Apache-2.0
"""What the screen of `insula top` shows, out of recorded answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.top import figures
from insula.cli.top.figures import SORTS, Board, arranged, compact, duration, graph, placed
from insula.cli.top.overview import COLUMNS

A, B = "a" * 64, "b" * 64


def stats(at: float, container: str = A, **counters: Any) -> dict[str, Any]:
    usual = {
        "id": container, "name": container[:3], "sampled_at": at, "cpu_usage_us": 0, "memory_bytes": 1, "pids": 1,
        "memory_limit_bytes": None, "cpu_wait_us": None, "memory_wait_us": 0, "io_wait_us": 0, "read_bytes": 0,
        "written_bytes": 0, "received_bytes": 0, "sent_bytes": 0,
    }  # fmt: skip
    return {**usual, **counters}


def counts(looked_s: float, **calls: tuple[int, dict[str, int]]) -> dict[str, Any]:
    return {
        "id": A,
        "looked_s": looked_s,
        "calls": [
            {"call": call, "calls": times, "failures": sum(errors.values()), "errors": errors}
            for call, (times, errors) in calls.items()
        ],
    }


def test_one_sample_tells_no_rate() -> None:
    board = Board()
    board.take_stats([stats(1.0)])
    (found,) = board.figures()
    assert (found.cpu_percent, found.calls, found.disk) == (None, None, 0.0)


def test_two_samples_tell_rates() -> None:
    board = Board()
    board.take_stats([stats(1.0)])
    board.take_stats([stats(3.0, cpu_usage_us=1_000_000, io_wait_us=200_000, read_bytes=10, sent_bytes=4)])
    (found,) = board.figures()
    assert found.cpu_percent == 50.0
    assert found.waits == (None, 0.0, 10.0)
    assert (found.disk, found.network) == (5.0, 2.0)


def test_counters_that_began_anew_are_no_negative_rates() -> None:
    board = Board()
    board.take_stats([stats(1.0, cpu_usage_us=5_000_000)])
    board.take_counts([counts(1.0, read=(100, {}))])
    board.take_stats([stats(2.0, cpu_usage_us=10)])
    board.take_counts([counts(2.0, read=(7, {}))])
    (found,) = board.figures()
    assert (found.cpu_percent, found.call_rate) == (0.0, 7.0)


def test_calls_and_their_errors_a_second() -> None:
    board = Board()
    for at in (1.0, 2.0):
        board.take_stats([stats(at)])
    board.take_counts([counts(1.0, read=(10, {}), openat=(5, {"ENOENT": 5}))])
    board.take_counts([counts(3.0, read=(30, {}), openat=(9, {"ENOENT": 7, "EACCES": 2}), stat=(0, {}))])
    (found,) = board.figures()
    assert [(each.call, each.rate, each.failure_rate) for each in found.calls or ()] == [
        ("read", 10.0, 0.0),
        ("openat", 2.0, 2.0),
    ]
    assert found.errors == [("openat ENOENT", 1.0), ("openat EACCES", 1.0)]
    board.drop_counts()
    assert board.figures()[0].calls is None


def test_a_rate_stays_until_calls_were_looked_at_again() -> None:
    board = Board()
    board.take_stats([stats(1.0)])
    for looked_s, calls in ((0.0, 0), (0.2, 80), (0.2, 80), (0.25, 81), (0.4, 100)):
        board.take_counts([counts(looked_s, read=(calls, {}))])
    assert board.figures()[0].call_rate == pytest.approx(100.0)
    board.take_counts([counts(0.45, read=(100, {}))])
    assert board.figures()[0].call_rate == pytest.approx(100.0)


def test_who_runs_no_more_is_not_shown() -> None:
    board = Board()
    board.take_stats([stats(1.0), stats(1.0, B)])
    board.take_stats([stats(2.0, B)])
    assert [each.id for each in board.figures()] == [B]
    assert board.find(A) is None


def test_rows_are_sorted_and_filtered() -> None:
    board = Board()
    for at in (1.0, 2.0):
        board.take_stats([stats(at, A, cpu_usage_us=at * 10), stats(at, B, cpu_usage_us=at * 20)])
    rows = board.figures()
    by_cpu, by_name = SORTS[0], SORTS[-1]
    assert [each.id for each in arranged(rows, sort=by_cpu, is_reversed=False, wanted="")] == [B, A]
    assert [each.id for each in arranged(rows, sort=by_cpu, is_reversed=True, wanted="")] == [A, B]
    assert [each.id for each in arranged(rows, sort=by_name, is_reversed=False, wanted="")] == [A, B]
    assert [each.id for each in arranged(rows, sort=by_name, is_reversed=False, wanted="b")] == [B]
    assert [each.id for each in arranged(rows, sort=by_name, is_reversed=False, wanted="bbbb")] == [B]


def test_every_order_is_a_letter_of_its_column() -> None:
    titles = {column.sort: column.title for column in COLUMNS} | {"a": "NAME"}
    assert set(titles) == {sort.key for sort in SORTS}
    for key, title in titles.items():
        assert key in title or key.upper() in title


@given(st.floats(0, 9e17))
def test_numbers_take_four_characters(number: float) -> None:
    assert len(compact(number)) <= 4
    assert len(compact(number, base=1000)) <= 4


@given(st.integers(0, 10**12))
def test_durations_take_five_characters(ns: int) -> None:
    assert len(duration(ns)) <= 5


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.0K"), (1024, "1.0K"), (12_345_678, "12M")]
)
def test_numbers_as_words(number: float, text: str) -> None:
    assert compact(number) == text


def test_a_graph_is_as_high_as_its_values() -> None:
    assert graph([None, 0.0, 50.0, 100.0], height=2, ceiling=100.0) == ["   █", " ▁██"]


def test_spans_stand_where_their_time_is() -> None:
    spans = [{"at": 60.0 * minute + 59, "seconds": 60.0, "cpu_us": minute} for minute in (5, 6, 8)]
    found = placed(spans, count=5, step_s=60, read=lambda span: float(span["cpu_us"]))
    assert found == [None, 5.0, 6.0, None, 8.0]
    assert placed([], count=2, step_s=60, read=lambda span: 1.0) == [None, None]


def test_what_is_not_known_is_a_dash() -> None:
    assert (figures.percent(None), figures.wait(None), figures.count(None), duration(0)) == ("-",) * 4

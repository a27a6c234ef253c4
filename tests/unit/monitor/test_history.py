# SPDX-License-Identifier: Apache-2.0
"""The history of an hour: added up rightly, bounded, and there again after a restart."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.history import KEPT_S, CallShare, Sample
from insula.monitor.history import MAX_TICKS, History

NOW = 1_700_000_000.0
A, B = "a" * 64, "b" * 64


def sample(container: str = A, **figures: object) -> Sample:
    given: dict[str, object] = {
        "seconds": 5, "cpu_us": 0, "memory_bytes": 0, "pids": 1, "cpu_wait_us": None, "memory_wait_us": None, "io_wait_us": None,
        "read_bytes": 0, "written_bytes": 0, "received_bytes": 0, "sent_bytes": 0,
    }  # fmt: skip
    return Sample(container=container, **{**given, **figures})  # type: ignore[arg-type]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "history.sqlite")
    yield made
    made.close()


def test_samples_are_added_up_to_one_figure(history: History) -> None:
    history.add([sample(cpu_us=1_000_000, memory_bytes=100, cpu_wait_us=5)], at=NOW - 5)
    history.add([sample(cpu_us=5_000_000, memory_bytes=300, cpu_wait_us=7, read_bytes=9)], at=NOW)
    (found,) = history.usage({A: "web"}, since=NOW - 60, step_s=math.inf)
    assert (found.name, found.at, found.seconds) == ("web", NOW, 10)
    assert (found.cpu_us, found.cpu_peak_percent) == (6_000_000, 100.0)
    assert (found.memory_bytes, found.memory_peak_bytes) == (200, 300)
    assert (found.cpu_wait_us, found.memory_wait_us, found.read_bytes) == (12, None, 9)
    assert (found.counted_seconds, found.calls, found.top_calls) == (0, 0, {})


def test_when_something_was_written_down_last_is_known(history: History) -> None:
    assert history.last_at is None
    for at in (100.0, 105.0):
        history.add([], at=at)
    assert history.last_at == 105.0


def test_what_is_older_is_left_out(history: History) -> None:
    for age in (100, 50, 10):
        history.add([sample(cpu_us=age)], at=NOW - age)
    assert [each.cpu_us for each in history.usage({A: ""}, since=NOW - 60)] == [50, 10]


def test_steps_lie_on_whole_multiples_of_themselves(history: History) -> None:
    for number in range(24):
        history.add([sample(cpu_us=1)], at=NOW + 5 * number)
    found = history.usage({A: ""}, since=0, step_s=60)
    assert sum(each.cpu_us for each in found) == 24
    assert len({each.at // 60 for each in found}) == len(found) <= 3


def test_each_container_has_its_own(history: History) -> None:
    history.add([sample(A, cpu_us=1), sample(B, cpu_us=2)], at=NOW)
    assert [each.cpu_us for each in history.usage({B: "b"}, since=0)] == [2]
    assert [each.id for each in history.usage({A: "a", B: "b", "c": "c"}, since=0)] == [A, B]


def test_system_calls_are_told_where_they_were_counted(history: History) -> None:
    history.add([sample()], at=NOW - 10)
    shares = (CallShare("read", "", 8), CallShare("openat", "", 2), CallShare("openat", "ENOENT", 1))
    for at in (NOW - 5, NOW):
        history.add([sample(calls=10, failures=1, shares=shares)], at=at)
    (found,) = history.usage({A: ""}, since=0, step_s=math.inf)
    assert (found.seconds, found.counted_seconds, found.calls, found.failures) == (15, 10, 20, 2)
    assert list(found.top_calls.items()) == [("read", 16), ("openat", 4)]
    assert found.top_errors == {"openat ENOENT": 2}


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2):
        opened = History(tmp_path / "history.sqlite")
        opened.add([sample(cpu_us=number)], at=NOW + number)
        found = opened.usage({A: ""}, since=0)
        opened.close()
    assert [each.cpu_us for each in found] == [1, 2]


@pytest.mark.parametrize(
    "content", [b"no database at all, and longer than a header of one hundred bytes " * 9, b""]
)
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.sqlite"
    path.write_bytes(content)
    opened = History(path)
    opened.add([sample(cpu_us=3)], at=NOW)
    assert [each.cpu_us for each in opened.usage({A: ""}, since=0)] == [3]
    opened.close()


def test_a_container_that_is_no_more_takes_its_rows_along(history: History) -> None:
    shares = (CallShare("read", "", 8),)
    history.add([sample(A, calls=8, failures=0, shares=shares), sample(B)], at=NOW)
    history.forget([A, "never seen"])
    assert history.known() == {B}
    assert [each.id for each in history.usage({A: "", B: ""}, since=0)] == [B]
    history.add([sample(A, cpu_us=9)], at=NOW + 5)  # it came back from another host
    assert [each.cpu_us for each in history.usage({A: ""}, since=0)] == [9]


def test_an_hour_is_kept_and_no_more(history: History) -> None:
    for number in range(MAX_TICKS + 50):
        history.add([sample()], at=NOW + 5 * number)
    assert len(history.usage({A: ""}, since=0)) == MAX_TICKS
    history.add([sample()], at=NOW + 3 * KEPT_S)
    assert len(history.usage({A: ""}, since=0)) == 1


def test_a_clock_that_was_set_back_lets_nothing_grow(history: History) -> None:
    for number in range(MAX_TICKS + 50):
        history.add([sample()], at=NOW - 5 * number)
    assert len(history.usage({A: ""}, since=0)) <= MAX_TICKS


def test_the_file_does_not_outgrow_its_bound(tmp_path: Path) -> None:
    bound = 256 << 10
    opened = History(tmp_path / "history.sqlite", max_bytes=bound)
    many = [sample(f"{number:064x}", cpu_us=1 << 40, memory_bytes=1 << 40) for number in range(100)]
    for number in range(200):
        opened.add(many, at=NOW + 5 * number)
    found = opened.usage({many[0].container: ""}, since=0)
    opened.close()
    assert (tmp_path / "history.sqlite").stat().st_size < 2 * bound
    assert 5 < len(found) < 200
    assert found[-1].at == NOW + 5 * 199


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40), st.sampled_from([0, 7, 60, math.inf]))
def test_no_step_loses_anything(
    tmp_path_factory: pytest.TempPathFactory, used: list[int], step: float
) -> None:
    opened = History(tmp_path_factory.mktemp("h") / "history.sqlite")
    for number, each in enumerate(used):
        opened.add([sample(cpu_us=each)], at=NOW + 5 * number)
    found = opened.usage({A: ""}, since=0, step_s=step)
    opened.close()
    assert sum(each.cpu_us for each in found) == sum(used)
    assert sum(each.seconds for each in found) == 5 * len(used)

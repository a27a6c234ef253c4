# SPDX-License-Identifier: Apache-2.0
"""The last line is what machines read; the table is what people read."""

import json

from demo.load import Outcome
from demo.report import Move, Summary, align
from demo.users import shown

MOVE = Move(frozen_ms=120.4, moved_bytes=61_200_000, seconds=1.5)


def summary(**changes: int) -> Summary:
    redis = Outcome(requests=1000, longest_gap_ms=180.26, seconds=6.0, **changes)
    return Summary(
        outcomes={"web": Outcome(requests=5, longest_gap_ms=3.0), "redis": redis}, move=MOVE, seconds=9.87
    )


def test_the_line_sums_requests_and_takes_the_longest_gap() -> None:
    word, _, facts = summary().line().partition(" ")
    assert word == "DEMO"
    assert json.loads(facts) == {
        "requests": 1005,
        "failed": 0,
        "lost": 0,
        "longest_gap_ms": 180.3,
        "moved_mb": 61.2,
        "seconds": 9.9,
    }


def test_a_failure_of_one_client_is_a_failure_of_all() -> None:
    assert (summary(failed=1, lost=2).failed, summary(failed=1, lost=2).lost) == (1, 2)
    assert "180.3 ms" in summary().table()


def test_columns_stand_under_each_other() -> None:
    assert align([("a", "n"), ("bcd", "10")]) == ["  a     n", "  bcd  10"]


def test_commands_are_shown_as_typed_and_programs_are_cut() -> None:
    assert shown(("run", "--save", "", "x\ny")) == "insula run --save '' …"

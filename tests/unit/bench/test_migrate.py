# SPDX-License-Identifier: Apache-2.0
"""What the bench of moves makes of its samples: goals, the table, ratios, and null for what was not measured."""

import json

import pytest
from bench import migrate, redis, small
from bench.migrate import FACTS, QUICK, Part, Sizes, Whole
from bench.moving import (
    Found,
    Goal,
    Moved,
    PartFailed,
    PartMissing,
    Row,
    is_met,
    median_phases,
    phases_of,
    table,
)


def moved(gap_ms: float) -> Moved:
    return Moved(gap_ms=gap_ms, frozen_ms=gap_ms / 2, moved_mb=1.5, phases_ms={"freeze": gap_ms / 4})


def last_line(text: str) -> dict[str, object]:
    facts = json.loads(text.splitlines()[-1].removeprefix("BENCH "))
    assert isinstance(facts, dict)
    return facts


def redis_found(*gaps_ms: float, failed: int = 0) -> Found:
    load = redis.small(megabytes=100, moves=len(gaps_ms))
    moves = [moved(gap) for gap in gaps_ms]
    return Found(
        rows=[redis.row(load, moves, failed=failed)],
        facts={**redis.facts("redis100", moves), "phases_ms": median_phases(moves)},
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row(load="a", gaps_ms=[40, 50, 110], goal=Goal(p50_ms=50, max_ms=120)), True),
        (Row(load="a", gaps_ms=[40, 51, 110], goal=Goal(p50_ms=50, max_ms=120)), False),
        (Row(load="a", gaps_ms=[40, 50, 121], goal=Goal(p50_ms=50, max_ms=120)), False),
        (Row(load="a", gaps_ms=[40], failed=1, goal=Goal(p50_ms=50)), False),
        (Row(load="a", slowdown=0.06, goal=Goal(slowdown=0.05)), False),
        (Row(load="a", slowdown=-0.01, goal=Goal(slowdown=0.05)), True),
        (Row(load="a", gaps_ms=[40]), None),
        (Row(load="a", goal=Goal(p50_ms=50)), None),
    ],
)
def test_a_goal_is_met_by_all_that_was_measured_and_no_failure(row: Row, expected: bool | None) -> None:
    assert is_met(row) is expected


def test_the_table_has_a_row_for_each_load() -> None:
    rows = [
        Row(
            load="server", gaps_ms=[40.0], frozen_ms=[30.0], moved_mb=[1.0], goal=Goal(p50_ms=50, max_ms=120)
        ),
        Row(load="writer", slowdown=0.031, goal=Goal(slowdown=0.05)),
    ]
    head, server, writer = (line.split() for line in table(rows))
    assert head[-3:] == ["failed", "goal", "met"]
    assert server == "server 40.0 40.0 30.0 1.0 0 median <= 50, worst <= 120 yes".split()
    assert writer == "writer slower by 3.1% - - - - <= 5% yes".split()


def test_a_part_that_did_not_run_is_null() -> None:
    facts = migrate.facts_of(Whole(found={}, lines=[]))
    assert {facts[name] for name in FACTS} == {None}
    assert (facts["failed"], facts["failed_parts"]) == (0, 0)


def test_ratios_are_ours_by_theirs_and_only_our_failures_count() -> None:
    peer = Found(rows=[Row(load="podman", gaps_ms=[1000.0], failed=7, is_peer=True)], facts={})
    whole = Whole(
        found={Part.REDIS100: redis_found(40.0, 60.0, 50.0, failed=2), Part.PODMAN: peer},
        lines=["criu: not run"],
    )
    text = migrate.report(whole, migrate.facts_of(whole))
    facts = last_line(text)
    assert (facts["redis100_vs_podman"], facts["redis100_vs_criu"], facts["failed"]) == (0.05, None, 2)
    assert (facts["redis100_gap_p50_ms"], facts["redis100_gap_max_ms"]) == (50.0, 60.0)
    assert facts["phases_ms"] == {"freeze": 12.5}
    assert "criu: not run" in text
    assert "share this machine" in text


def test_a_part_that_fails_or_is_missing_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Found:
        raise PartFailed("it broke")

    def miss() -> Found:
        raise PartMissing("podman")

    made = {Part.REDIS100: fail, Part.PODMAN: miss, Part.CRIU: lambda: redis_found(1.0), Part.TRACKING: fail}
    monkeypatch.setattr(migrate, "makers", lambda sizes: made)
    whole = migrate.measure([Part.REDIS100, Part.PODMAN, Part.CRIU], Sizes())
    assert whole.lines == ["redis100: FAILED: it broke", "podman: missing here: podman", "tracking: not run"]
    assert (list(whole.found), whole.failed_parts) == ([Part.CRIU], 1)


def test_small_containers_have_a_row_for_each_drain() -> None:
    done = [
        small.Emptied(words=words, seconds_each=0.25, worst_ms=worst, median_ms=20.0)
        for words, worst in (("one", 90.0), ("back", 80.0), ("four", 260.0))
    ]
    rows = small.rows(done, count=200, failed=0)
    assert [is_met(row) for row in rows] == [True, True, False]
    facts = small.facts(done, count=200)
    assert (facts["small200_gap_max_ms"], facts["small200_one_by_one_ms_each"]) == (260.0, 250.0)


def test_moves_and_numbers_come_from_the_command_line() -> None:
    sizes = migrate.sizes_of(migrate.parse(["redis2g", "--moves", "20"]), small_count="40")
    assert (sizes.large_moves, sizes.large_mb, sizes.small) == (20, 2000, 40)
    assert migrate.sizes_of(migrate.parse(["--quick"]), small_count="") == QUICK
    assert migrate.parse(["podman", "criu"]).parts == [Part.PODMAN, Part.CRIU]


def test_phases_are_read_out_of_a_moves_result() -> None:
    result = {"target": "beta", "frozen_ms": 5.0, "freeze_ms": 3.0, "transfer_ms": 1, "seconds": 1.0}
    assert phases_of(result) == {"freeze": 3.0, "transfer": 1.0}

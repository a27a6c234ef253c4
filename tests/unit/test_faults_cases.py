# SPDX-License-Identifier: Apache-2.0
"""What `make faults` tries: every fault that the machine knows in every phase where there is something to strike."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.cases import ORDER, Fault, Phase, all_cells, all_pairs, draw, is_possible, phase_of
from faults.coverage import Coverage
from insula.migrate.fault import Point

OFTEN = 200
EVERYWHERE = (
    Fault.KILL_SOURCE,
    Fault.KILL_TARGET,
    Fault.SPAWNER_SOURCE,
    Fault.SPAWNER_TARGET,
    Fault.CUT,
    Fault.SLOW,
    Fault.DISK_SOURCE,
    Fault.DISK_TARGET,
    Fault.MEMORY_TARGET,
    Fault.CLOCK_SOURCE,
    Fault.CLOCK_TARGET,
)


@pytest.mark.parametrize("seed", range(1, 6))
def test_two_hundred_cases_leave_no_cell_and_no_point_empty(seed: int) -> None:
    cases = list(draw(OFTEN, seed=seed))
    assert Coverage.of(cases).empty() == []
    assert {case.point for case in cases} == set(Point)


def test_what_can_be_struck_anywhere_is_struck_at_every_point() -> None:
    assert [(fault, point) for fault in EVERYWHERE for point in Point if not is_possible(fault, point)] == []


def test_a_criu_is_struck_in_every_phase_that_has_one() -> None:
    phases = {fault: {phase for each, phase in all_cells() if each is fault} for fault in Fault}
    assert phases[Fault.CRIU_SOURCE] == {Phase.FREEZE, Phase.RESTORE, Phase.COMMIT, Phase.RESUME}
    assert phases[Fault.CRIU_TARGET] == {Phase.ROUNDS, Phase.FREEZE, Phase.RESTORE, Phase.COMMIT}


def test_phases_come_in_the_order_of_the_points() -> None:
    places = [list(Phase).index(phase_of(point)) for point in ORDER]
    assert places == sorted(places)
    assert set(places) == set(range(len(Phase)))


def test_every_possible_pair_comes_before_any_comes_again() -> None:
    count = len(all_pairs())
    assert {(case.fault, case.point) for case in draw(count, seed=3)} == set(all_pairs())


def test_the_matrix_has_a_line_for_each_fault() -> None:
    lines = list(Coverage.of(draw(OFTEN, seed=1)).lines())
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [fault.value for fault in Fault]

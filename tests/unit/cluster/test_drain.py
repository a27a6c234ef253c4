# SPDX-License-Identifier: Apache-2.0
"""Emptying a host: where containers go, what happens to those that nobody takes, and cancelling."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cluster.drain import Part, carry_all, place
from insula.model.errors import Cancelled, TargetFull, TargetUnreachable
from insula.model.record import ContainerRecord, PlannedMove
from records import container_record


def container(name: str) -> ContainerRecord:
    return container_record(id=name * 64, name=name, tenant="anna")


class Told:
    def __init__(self, *, cancel_after: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.messages: list[str] = []
        self._left = cancel_after
        self._lock = threading.Lock()

    def check(self) -> None:
        with self._lock:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise Cancelled("cancelled")

    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None:
        assert unit == "containers"
        self.steps.append((done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)


def moves(count: int, hosts: list[str]) -> list[PlannedMove]:
    return place([container(f"{number:x}") for number in range(count)], hosts)


@given(count=st.integers(0, 16), hosts=st.integers(1, 4))
def test_every_container_goes_somewhere_and_no_host_gets_much_more(count: int, hosts: int) -> None:
    names = [f"host{number}" for number in range(hosts)]
    planned = moves(count, names)
    shares = [sum(each.target == name for each in planned) for name in names]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


def test_without_a_host_nothing_is_planned() -> None:
    with pytest.raises(TargetUnreachable, match="no paired host answers"):
        moves(1, [])


@pytest.mark.parametrize("parallel", [1, 4])
def test_all_are_carried_and_counted(parallel: int) -> None:
    told, carried = Told(), set()

    def carry(move: PlannedMove, part: Part) -> None:
        part.phase("freeze")
        carried.add(move.name)

    outcome = carry_all(moves(9, ["beta"]), carry, hosts=["beta"], reporter=told, parallel=parallel)
    assert (outcome.moved, outcome.left, outcome.is_cancelled) == (9, (), False)
    assert len(carried) == 9
    assert sorted(told.steps)[-1] == (9, 9)
    assert "0: freeze" in told.messages


def test_a_full_host_is_passed_over() -> None:
    went = {}

    def carry(move: PlannedMove, part: Part) -> None:
        if move.target == "beta":
            raise TargetFull("no room")
        went[move.name] = move.target

    outcome = carry_all(moves(4, ["beta", "gamma"]), carry, hosts=["beta", "gamma"], reporter=Told())
    assert outcome.moved == 4
    assert set(went.values()) == {"gamma"}


def test_what_nobody_takes_is_named_with_the_reason() -> None:
    def carry(move: PlannedMove, part: Part) -> None:
        if move.name == "1":
            raise TargetFull("no room", hint="make some")

    outcome = carry_all(moves(3, ["beta"]), carry, hosts=["beta"], reporter=Told())
    assert outcome.moved == 2
    assert [(each.name, each.reason) for each in outcome.left] == [("1", "no room (make some)")]


def test_a_cancelled_one_leaves_the_rest() -> None:
    outcome = carry_all(
        moves(5, ["beta"]), lambda move, part: None, hosts=["beta"], reporter=Told(cancel_after=2)
    )
    assert (outcome.moved, outcome.is_cancelled) == (2, True)

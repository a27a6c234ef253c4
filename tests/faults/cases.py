# SPDX-License-Identifier: Apache-2.0
"""Which faults there are, at which points of a move, and who must own the container afterwards.  Pure: no I/O.

The table of `docs/faults.md` is drawn from here.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from insula.migrate.fault import OF_PULLS, Point

ORDER = tuple(each for each in Point if each not in OF_PULLS)


class Fault(StrEnum):
    FAIL = "step fails"
    KILL_SOURCE = "kill -9 insulad of the source"
    KILL_TARGET = "kill -9 insulad of the target"
    KILL_BOTH = "kill -9 both insulads"
    CRIU_SOURCE = "kill -9 CRIU of the source"
    CRIU_TARGET = "kill -9 CRIU of the target"
    SPAWNER_SOURCE = "kill -9 spawner of the source"
    SPAWNER_TARGET = "kill -9 spawner of the target"
    FILLER = "kill -9 filler"
    CUT = "link cut"
    CUT_TO_SOURCE = "link cut towards the source"
    CUT_TO_TARGET = "link cut towards the target"
    SLOW = "link slow"
    DISK_SOURCE = "disk full on the source"
    DISK_TARGET = "disk full on the target"
    MEMORY_TARGET = "out of memory on the target"
    CLOCK_SOURCE = "clock of the source jumps"
    CLOCK_TARGET = "clock of the target jumps"


class Owner(StrEnum):
    SOURCE = "S"
    TARGET = "T"
    EITHER = "S or T"


_COMMIT = ORDER.index(Point.SOURCE_COMMITTED)
_TAKEN = ORDER.index(Point.TARGET_COMMITTED)
_RUNS = ORDER.index(Point.TARGET_RESTORED)
_DUMPED = ORDER.index(Point.TARGET_LAST_PAGES)

_WAITS_FOR_NOBODY = {Fault.SLOW, Fault.DISK_SOURCE, Fault.CLOCK_SOURCE, Fault.CLOCK_TARGET}
_MAY_END_IT = {Fault.SPAWNER_SOURCE, Fault.SPAWNER_TARGET, Fault.FILLER, Fault.MEMORY_TARGET}
"""The program's memory goes with its spawner, filler or cgroup: a restart policy brings it back, what it stored is there."""


def may_end_the_program(fault: Fault, point: Point) -> bool:
    if fault is Fault.CRIU_SOURCE and point is Point.TARGET_LAST_PAGES:
        return (
            True  # in the middle of its dump: who reads a socket before it is taken out of repair sees EPERM
        )
    return fault in _MAY_END_IT


def is_possible(fault: Fault, point: Point) -> bool:
    """Tell whether that which the fault strikes is there at that point."""
    place = ORDER.index(point)
    match fault:
        case Fault.FAIL:
            return place < _COMMIT
        case Fault.CRIU_SOURCE:
            return ORDER.index(Point.SOURCE_FROZEN) <= place
        case Fault.CRIU_TARGET:
            return ORDER.index(Point.TARGET_HELD) <= place <= _TAKEN
        case Fault.FILLER:
            return ORDER.index(Point.TARGET_HELD) <= place
        case _:
            return True


def owner_after(fault: Fault, point: Point) -> Owner:
    """Say who must own the container when the fault is over.  EITHER: it is decided by what was on its way just then."""
    place = ORDER.index(point)
    if fault in _WAITS_FOR_NOBODY or place >= _RUNS:
        return Owner.EITHER if fault is Fault.DISK_SOURCE and place < _COMMIT else Owner.TARGET
    if place < _COMMIT:
        if fault in (
            Fault.CUT,
            Fault.CUT_TO_SOURCE,
            Fault.CUT_TO_TARGET,
            Fault.DISK_TARGET,
            Fault.MEMORY_TARGET,
        ):
            return Owner.EITHER
        if fault is Fault.CRIU_SOURCE and place >= _DUMPED:
            return Owner.EITHER
        if fault in (Fault.SPAWNER_SOURCE, Fault.SPAWNER_TARGET):
            return Owner.EITHER  # there is another at once: what needs none of it meanwhile goes through
        return Owner.SOURCE
    if fault in (Fault.KILL_TARGET, Fault.KILL_BOTH, Fault.CRIU_TARGET):
        # It holds, or has taken over, and what it restored is gone before it ran: the source takes it back.
        return Owner.SOURCE
    loses = (Fault.SPAWNER_TARGET, Fault.FILLER, Fault.DISK_TARGET, Fault.MEMORY_TARGET)
    return Owner.EITHER if fault in loses else Owner.TARGET


@dataclass(frozen=True, kw_only=True)
class Case:
    number: int
    fault: Fault
    point: Point
    heal_after_s: float
    """Until what was killed is started again, the link or the disk is given back."""

    @property
    def owner(self) -> Owner:
        return owner_after(self.fault, self.point)


def all_pairs() -> list[tuple[Fault, Point]]:
    return [(fault, point) for fault in Fault for point in ORDER if is_possible(fault, point)]


def draw(count: int, *, seed: int, heal_after_s: float | None = None) -> Iterator[Case]:
    """Give so many cases: every possible pair once, in random order, before any comes again."""
    chance = random.Random(seed)
    pairs: list[tuple[Fault, Point]] = []
    for number in range(count):
        if not pairs:
            pairs = all_pairs()
            chance.shuffle(pairs)
        fault, point = pairs.pop()
        late = 9.5 if fault in (Fault.CUT, Fault.CUT_TO_SOURCE, Fault.CUT_TO_TARGET) else 1.5
        heal = late if chance.random() < 0.2 else chance.choice((0.0, 0.1, 0.4))
        given = heal if heal_after_s is None else heal_after_s
        yield Case(number=number + 1, fault=fault, point=point, heal_after_s=given)

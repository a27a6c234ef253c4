# SPDX-License-Identifier: Apache-2.0
"""Which faults there are, at which points of a move, and who must own the container afterwards.  Pure: no I/O.

The table of `docs/faults.md` is drawn from here.  A cell is a fault in a phase; its cases are the phase's points.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from insula.migrate.fault import OF_PULLS, Point

ORDER = tuple(Point)


class Phase(StrEnum):
    RESERVE = "reserve"
    ROUNDS = "rounds"
    FREEZE = "freeze"
    RESTORE = "restore"
    COMMIT = "commit"
    RESUME = "resume"
    PULL = "pull"
    """Of post-copy, from before the restore until all memory is there."""


#: Each phase begins at its point, and ends where the next begins.
_BEGINS = {
    Point.TARGET_RESERVED: Phase.RESERVE,
    Point.TARGET_PAGES: Phase.ROUNDS,
    Point.SOURCE_FROZEN: Phase.FREEZE,
    Point.TARGET_RESTORE: Phase.RESTORE,
    Point.SOURCE_HELD: Phase.COMMIT,
    Point.TARGET_RESTORED: Phase.RESUME,
    Point.TARGET_PULL: Phase.PULL,
}


def phase_of(point: Point) -> Phase:
    """Return the phase that a point is in."""
    return next(_BEGINS[each] for each in reversed(ORDER[: ORDER.index(point) + 1]) if each in _BEGINS)


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


CUTS = {Fault.CUT, Fault.CUT_TO_SOURCE, Fault.CUT_TO_TARGET}

_COMMIT = ORDER.index(Point.SOURCE_COMMITTED)
_TAKEN = ORDER.index(Point.TARGET_COMMITTED)
_RUNS = ORDER.index(Point.TARGET_RESTORED)
_DUMPED = ORDER.index(Point.TARGET_LAST_PAGES)

_WAITS_FOR_NOBODY = {Fault.SLOW, Fault.DISK_SOURCE, Fault.CLOCK_SOURCE, Fault.CLOCK_TARGET}
_MAY_END_IT = {Fault.SPAWNER_SOURCE, Fault.SPAWNER_TARGET, Fault.FILLER, Fault.MEMORY_TARGET}
"""The program's memory goes with its spawner, filler or cgroup: a restart policy brings it back, what it stored is there."""


_NOT_IN_PULLS = {Fault.FAIL, Fault.CRIU_SOURCE, Fault.CRIU_TARGET}
"""A pull that fails is begun again; whether a CRIU still is there then is open."""


def may_end_a_connection(fault: Fault, point: Point) -> bool:
    """In the middle of CRIU's dump: who reads a socket before it is taken out of repair sees EPERM, and may end it, or itself."""
    return fault is Fault.CRIU_SOURCE and point is Point.TARGET_LAST_PAGES


def may_end_the_program(fault: Fault, point: Point) -> bool:
    if may_end_a_connection(fault, point):
        return True
    if fault is Fault.SPAWNER_SOURCE and point in OF_PULLS:
        return True  # what was not pulled yet goes with it
    return fault in _MAY_END_IT


def is_possible(fault: Fault, point: Point) -> bool:
    """Tell whether that which the fault strikes is there at that point."""
    place = ORDER.index(point)
    match fault:
        case _ if point in OF_PULLS:
            return fault not in _NOT_IN_PULLS
        case Fault.FAIL:
            return place < _COMMIT
        case Fault.CRIU_SOURCE:
            return ORDER.index(Point.SOURCE_FROZEN) <= place
        case Fault.CRIU_TARGET:
            return ORDER.index(Point.TARGET_PREPARED) <= place <= _TAKEN  # it is there before the images
        case Fault.FILLER:
            return point is Point.TARGET_HELD  # a little later it has done its work, except in pulls
        case _:
            return True


def owner_after(fault: Fault, point: Point) -> Owner:
    """Say who must own the container when the fault is over.  EITHER: it is decided by what was on its way just then."""
    place = ORDER.index(point)
    if point in OF_PULLS:  # they begin before the commit
        return Owner.TARGET if fault in _WAITS_FOR_NOBODY - {Fault.DISK_SOURCE} else Owner.EITHER
    if fault in _WAITS_FOR_NOBODY or place >= _RUNS:
        return Owner.EITHER if fault is Fault.DISK_SOURCE and place < _COMMIT else Owner.TARGET
    if place < _COMMIT:
        if fault in CUTS | {Fault.DISK_TARGET, Fault.MEMORY_TARGET}:
            return Owner.EITHER
        if fault is Fault.CRIU_SOURCE and place >= _DUMPED:
            return Owner.EITHER
        if fault is Fault.FILLER:
            return Owner.EITHER  # it may have done its work
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

    @property
    def cell(self) -> "Cell":
        return self.fault, phase_of(self.point)


Cell = tuple[Fault, Phase]


def all_pairs() -> list[tuple[Fault, Point]]:
    return [(fault, point) for fault in Fault for point in ORDER if is_possible(fault, point)]


def all_cells() -> set[Cell]:
    return {(fault, phase_of(point)) for fault, point in all_pairs()}


def draw(count: int, *, seed: int, heal_after_s: float | None = None) -> Iterator[Case]:
    """Give so many cases, in random order: one of each cell, then another of each, until every possible pair was there; again."""
    chance = random.Random(seed)
    pairs: list[tuple[Fault, Point]] = []
    for number in range(1, count + 1):
        pairs = pairs or _in_turns(chance)
        fault, point = pairs.pop(0)
        late = 9.5 if fault in CUTS else 1.5
        heal = late if chance.random() < 0.2 else chance.choice((0.0, 0.1, 0.4))
        given = heal if heal_after_s is None else heal_after_s
        yield Case(number=number, fault=fault, point=point, heal_after_s=given)


def _in_turns(chance: random.Random) -> list[tuple[Fault, Point]]:
    """Return all pairs: none of a cell for the second time before every other cell had its first."""
    pairs = all_pairs()
    chance.shuffle(pairs)
    seen: Counter[Cell] = Counter()
    turns: list[int] = []
    for fault, point in pairs:
        seen[fault, phase_of(point)] += 1
        turns.append(seen[fault, phase_of(point)])
    return [pair for _turn, pair in sorted(zip(turns, pairs, strict=True), key=lambda each: each[0])]

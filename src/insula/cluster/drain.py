# SPDX-License-Identifier: Apache-2.0
"""Empty a host: which container goes to which paired host, and all of them carried, a few at a time.

A container that a host refuses is offered to the next one; one that no host takes stays, runs on, and is named with the
reason.  Out of scope: how one is carried (`migrate`), and how they come back (`migrate/recall.py`).
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from insula.model import span
from insula.model.errors import Cancelled, InsulaError, TargetUnreachable
from insula.model.record import ContainerRecord, PlannedMove

PARALLEL = 1
"""Moves at a time: each one has the whole link then, and stands still for the shortest time."""


class Reporter(Protocol):
    """How a long action tells how far it is."""

    def check(self) -> None: ...
    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None: ...
    def message(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Left:
    """A container that stays."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    moved: int
    left: tuple[Left, ...]
    is_cancelled: bool = False


Carry = Callable[[PlannedMove, "Part"], None]
"""Moves one container.  Raises: InsulaError."""


def place(containers: Iterable[ContainerRecord], hosts: Sequence[str]) -> list[PlannedMove]:
    """Spread containers over hosts, as many on each as on the others.

    Raises: TargetUnreachable if there is no host.
    """
    if not hosts:
        raise TargetUnreachable(
            "cannot drain this host: no paired host answers", hint="insula host ls, insula host add"
        )
    ordered = sorted(containers, key=lambda each: (each.tenant, each.name))
    return [
        PlannedMove(container=each.id, name=each.name, tenant=each.tenant, target=hosts[number % len(hosts)])
        for number, each in enumerate(ordered)
    ]


class Part:
    """What one of several moves tells: its phase is the whole's message; cancelling the whole cancels it."""

    def __init__(self, whole: Reporter, *, name: str) -> None:
        self._whole = whole
        self._name = name

    def check(self) -> None:
        self._whole.check()

    def phase(self, name: str) -> None:
        span.enter_phase(name)
        self._whole.message(f"{self._name}: {name}")

    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None:
        """Of no interest among many."""

    def message(self, text: str) -> None:
        self._whole.message(f"{self._name}: {text}")

    def forbid_cancel(self) -> None:
        """The others can still be cancelled, this one no more."""
        self._whole.check()


def carry_all(
    moves: Sequence[PlannedMove],
    carry: Carry,
    *,
    hosts: Sequence[str],
    reporter: Reporter,
    parallel: int = PARALLEL,
) -> Outcome:
    """Carry containers, `parallel` at a time.  A cancel lets those go on that cannot turn back any more."""
    counted = Counter[str]()
    left: list[Left] = []
    lock = threading.Lock()

    def one(move: PlannedMove) -> None:
        kind, reason = _carry_one(move, carry, hosts=hosts, reporter=reporter)
        with lock:
            counted[kind] += 1
            if kind == "left":
                left.append(Left(move.name, reason))
            reporter.progress(counted.total(), len(moves), unit="containers")

    with ThreadPoolExecutor(max_workers=max(1, parallel), thread_name_prefix="drain") as pool:
        list(pool.map(one, moves))
    return Outcome(
        moved=counted["moved"],
        left=tuple(sorted(left, key=lambda each: each.name)),
        is_cancelled=counted["cancelled"] > 0,
    )


def _carry_one(
    move: PlannedMove, carry: Carry, *, hosts: Sequence[str], reporter: Reporter
) -> tuple[str, str]:
    reason = ""
    for host in [move.target, *(each for each in hosts if each != move.target)]:
        try:
            reporter.check()
            carry(
                PlannedMove(container=move.container, name=move.name, tenant=move.tenant, target=host),
                Part(reporter, name=move.name),
            )
            return "moved", ""
        except Cancelled:
            return "cancelled", ""
        except InsulaError as error:
            reason = f"{error.message} ({error.hint})" if error.hint else error.message
    return "left", reason

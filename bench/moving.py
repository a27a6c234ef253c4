# SPDX-License-Identifier: Apache-2.0
"""What all measurements of moves share: two hosts made for it, one move, its phases, and the table.

The two hosts and the client are the demo's (`demo/hosts.py`, `demo/load.py`).  Out of scope: what is moved.
"""

import select
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from demo import users
from demo.clients import LoadClient
from demo.hosts import Host, Lan, World, tail
from demo.report import align
from demo.users import CommandFailed

from insula.client import operations
from insula.client.http import Client
from insula.model.errors import InsulaError
from insula.model.migration import Phase

LAN = Lan(name="lan1", tenant="root", prefix="10.99.1")
ADDRESS = LAN.address(10)


class PartFailed(Exception):
    """A part could not be measured to its end."""


class PartMissing(Exception):
    """Something that a part needs is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One move as its client and its host saw it."""

    gap_ms: float
    frozen_ms: float
    moved_mb: float
    phases_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What issue and closing note compare with; None: nothing is asked."""

    p50_ms: float | None = None
    max_ms: float | None = None
    slowdown: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A load's line of the table."""

    load: str
    gaps_ms: Sequence[float] = ()
    frozen_ms: Sequence[float] = ()
    moved_mb: Sequence[float] = ()
    failed: int = 0
    slowdown: float | None = None
    is_peer: bool = False
    """Its failures are not ours."""
    goal: Goal = field(default_factory=Goal)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a part found out: lines of the table, and facts for the last line."""

    rows: Sequence[Row]
    facts: Mapping[str, object]


@contextmanager
def two_hosts() -> Iterator[World]:
    """Make two paired hosts with a network, and take them away.  Raises: PartFailed with what they logged."""
    with World(lans=(LAN,)) as world:
        try:
            users.make((), program=Path())
            world.start()
            world.pair("alpha", "beta")
            world.create_networks()
            yield world
        except (CommandFailed, InsulaError, OSError) as error:
            logs = "\n".join(tail(host) for host in world.hosts.values())
            raise PartFailed(f"{error}\n{logs}") from error
        finally:
            users.remove(())


def follow(client: Client, operation: Mapping[str, object]) -> Mapping[str, object]:
    """Wait for an operation's end; returns its result.  Raises: InsulaError."""
    last = dict(operation)
    for record in operations.follow(client, last):
        last = record
    error = operations.failure(last)
    if error is not None:
        raise error
    return dict(last["result"])  # type: ignore[call-overload, no-any-return]


def move(client: Client, name: str, *, target: str, max_pause_ms: int | None) -> Mapping[str, object]:
    """Carry a container to another host; returns the operation's result.  Raises: InsulaError."""
    wish = {"target": target, **({} if max_pause_ms is None else {"max_pause_ms": max_pause_ms})}
    return follow(client, client.call("POST", f"/v1/containers/{name}/migrate", body=wish))


def move_under_load(
    load: LoadClient, source: Host, *, name: str, target: str, settle_s: float, max_pause_ms: int | None
) -> Moved:
    """Carry a container that a client talks to."""
    wait(settle_s)
    load.take_gap_ms()
    result = move(source.client(), name, target=target, max_pause_ms=max_pause_ms)
    wait(settle_s)
    return Moved(
        gap_ms=load.take_gap_ms(),
        frozen_ms=float(str(result["frozen_ms"])),
        moved_mb=int(str(result["moved_bytes"])) / 1e6,
        phases_ms=phases_of(result),
    )


def wait(seconds: float) -> None:
    """Let the load run for a while."""
    select.select([], [], [], seconds)


def phases_of(result: Mapping[str, object]) -> dict[str, float]:
    """Return the milliseconds of each phase that a move's result tells."""
    told = {phase.value: result.get(f"{phase.value}_ms") for phase in Phase}
    return {name: float(str(value)) for name, value in told.items() if value is not None}


def median_phases(moves: Sequence[Moved]) -> dict[str, float]:
    """Return the median milliseconds of each phase."""
    names = dict.fromkeys(name for each in moves for name in each.phases_ms)
    return {
        name: round(statistics.median(each.phases_ms.get(name, 0.0) for each in moves), 1) for name in names
    }


def median(samples: Sequence[float]) -> float | None:
    """Return the median to a tenth; None of nothing."""
    return round(statistics.median(samples), 1) if samples else None


def most(samples: Sequence[float]) -> float | None:
    """Return the greatest to a tenth; None of nothing."""
    return round(max(samples), 1) if samples else None


def is_met(row: Row) -> bool | None:
    """Tell whether a load's goals are met; None if there is none or nothing was measured."""
    pairs = (
        (median(row.gaps_ms), row.goal.p50_ms),
        (most(row.gaps_ms), row.goal.max_ms),
        (row.slowdown, row.goal.slowdown),
    )
    judged = [found <= goal for found, goal in pairs if found is not None and goal is not None]
    return all(judged) and not row.failed if judged else None


def table(rows: Sequence[Row]) -> list[str]:
    """Lay the loads out, one a line."""
    head = ("load", "median gap ms", "worst", "frozen", "moved MB", "failed", "goal", "met")
    return align([head, *(_cells(row) for row in rows)])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.load,
        _shown(median(row.gaps_ms)) if row.slowdown is None else f"slower by {row.slowdown:.1%}",
        _shown(most(row.gaps_ms)),
        _shown(median(row.frozen_ms)),
        _shown(median(row.moved_mb)),
        str(row.failed) if row.slowdown is None else "-",
        goal_words(row.goal),
        {True: "yes", False: "NO", None: "-"}[is_met(row)],
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def goal_words(goal: Goal) -> str:
    """Say a goal as a person would."""
    words = [
        *([f"median <= {goal.p50_ms:.0f}"] if goal.p50_ms is not None else []),
        *([f"worst <= {goal.max_ms:.0f}"] if goal.max_ms is not None else []),
        *([f"<= {goal.slowdown:.0%}"] if goal.slowdown is not None else []),
    ]
    return ", ".join(words) or "-"

# SPDX-License-Identifier: Apache-2.0
"""What `insula top` shows, out of what the API tells: rates between two samples, sorted, as words.  Pure.

Out of scope: where samples come from (`feed.py`), and drawing (`overview.py`, `detail.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
BARS = " ▁▂▃▄▅▆▇█"
WAITS = ("cpu", "memory", "io")
_BYTES = ("read_bytes", "written_bytes", "received_bytes", "sent_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRate:
    """One system call, a second."""

    call: str
    rate: float
    failure_rate: float
    errors: tuple[tuple[str, float], ...]
    """(errno, a second), most frequent first."""
    mean_ns: int
    p99_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One container now.  None: not known, or not yet."""

    id: str
    name: str
    cpu_percent: float | None = None
    memory_bytes: int = 0
    memory_limit_bytes: int | None = None
    pids: int = 0
    waits: tuple[float | None, ...] = (None, None, None)
    """Percent of the time in which a process waited for a processor, memory, a disk."""
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """read_bytes, written_bytes, received_bytes, sent_bytes."""
    calls: tuple[CallRate, ...] | None = None
    """Most frequent first; None: not counted."""

    @property
    def disk(self) -> float:
        return self.bytes_per_s.get("read_bytes", 0.0) + self.bytes_per_s.get("written_bytes", 0.0)

    @property
    def network(self) -> float:
        return self.bytes_per_s.get("received_bytes", 0.0) + self.bytes_per_s.get("sent_bytes", 0.0)

    @property
    def call_rate(self) -> float | None:
        return None if self.calls is None else sum(each.rate for each in self.calls)

    @property
    def failure_rate(self) -> float | None:
        return None if self.calls is None else sum(each.failure_rate for each in self.calls)

    @property
    def errors(self) -> list[tuple[str, float]]:
        """(`openat ENOENT`, a second), most frequent first."""
        found = [
            (f"{each.call} {error}", rate)
            for each in self.calls or ()
            for error, rate in each.errors
            if rate > 0
        ]
        return sorted(found, key=lambda each: -each[1])


@dataclass(frozen=True, slots=True)
class Sort:
    """One order of the table."""

    key: str
    """What is pressed for it."""
    words: str
    read: Callable[[Figures], float | str]
    is_downward: bool = True


def _or_nothing(value: float | None) -> float:
    return -1.0 if value is None else value


SORTS: tuple[Sort, ...] = (
    Sort("c", "cpu", lambda of: _or_nothing(of.cpu_percent)),
    Sort("m", "mem", lambda of: of.memory_bytes),
    Sort("w", "wait", lambda of: max(_or_nothing(each) for each in of.waits)),
    Sort("d", "disk", lambda of: of.disk),
    Sort("n", "net", lambda of: of.network),
    Sort("s", "calls", lambda of: _or_nothing(of.call_rate)),
    Sort("e", "err", lambda of: _or_nothing(of.failure_rate)),
    Sort("a", "name", lambda of: of.name, is_downward=False),
)
SHORTEST_LOOK_S = 0.1
COUNTED_SORTS = frozenset("se")
"""By these nobody can sort who does not count all."""


class Board:
    """The last two samples of each container."""

    def __init__(self) -> None:
        self._stats: dict[str, tuple[Json | None, Json]] = {}
        self._counts: dict[str, tuple[Json | None, Json]] = {}

    def take_stats(self, samples: Sequence[Json]) -> None:
        """Take one line of `/v1/stats`: all that run."""
        self._stats = {each["id"]: (self._last(self._stats, each["id"]), each) for each in samples}

    def take_counts(self, samples: Sequence[Json]) -> None:
        """Take one line of `/v1/calls`: all that are counted."""
        self._counts = {each["id"]: self._counted(each) for each in samples}

    def _counted(self, now: Json) -> tuple[Json | None, Json]:
        """Calls are looked at now and then: what was hardly looked at since the last sample has its rate from before."""
        known = self._counts.get(now["id"])
        if known is not None and 0 <= now["looked_s"] - known[1]["looked_s"] < SHORTEST_LOOK_S:
            return known
        return None if known is None else known[1], now

    def drop_counts(self) -> None:
        """Nobody counts any more."""
        self._counts = {}

    @staticmethod
    def _last(known: Mapping[str, tuple[Json | None, Json]], container: str) -> Json | None:
        return known[container][1] if container in known else None

    def figures(self) -> list[Figures]:
        """Return all that run, in no order."""
        return [self._figures(before, now) for before, now in self._stats.values()]

    def find(self, container: str) -> Figures | None:
        """Return one that runs."""
        pair = self._stats.get(container)
        return None if pair is None else self._figures(*pair)

    def _figures(self, before: Json | None, now: Json) -> Figures:
        counts = self._counts.get(now["id"])
        return Figures(
            id=now["id"],
            name=now["name"],
            cpu_percent=_percent(before, now, key="cpu_usage_us"),
            memory_bytes=now["memory_bytes"],
            memory_limit_bytes=now.get("memory_limit_bytes"),
            pids=now["pids"],
            waits=tuple(_percent(before, now, key=f"{what}_wait_us") for what in WAITS),
            bytes_per_s={key: _rate(before, now, key=key) or 0.0 for key in _BYTES},
            calls=None if counts is None else _call_rates(*counts),
        )


def _rate(before: Json | None, now: Json, *, key: str) -> float | None:
    """Return by how much a counter grew in a second; None: unknown.  One that was begun anew has not shrunk."""
    if before is None or now.get(key) is None or before.get(key) is None:
        return None
    seconds = float(now["sampled_at"] - before["sampled_at"])
    return max(0.0, now[key] - before[key]) / seconds if seconds > 0 else None


def _percent(before: Json | None, now: Json, *, key: str) -> float | None:
    rate = _rate(before, now, key=key)
    return None if rate is None else rate / 1e4


def _call_rates(before: Json | None, now: Json) -> tuple[CallRate, ...] | None:
    if before is None:
        return None
    seconds = float(now["looked_s"] - before["looked_s"])
    if seconds <= 0:
        return None
    known = {each["call"]: each for each in before["calls"]}
    rates = [_call_rate(known.get(each["call"]), each, seconds=seconds) for each in now["calls"]]
    return tuple(sorted((each for each in rates if each.rate > 0), key=lambda each: -each.rate))


def _call_rate(before: Json | None, now: Json, *, seconds: float) -> CallRate:
    def grown(count: int, was: int) -> float:
        return (count - was if count >= was else count) / seconds

    then: Json = before or {"calls": 0, "failures": 0, "errors": {}}
    errors = [(error, grown(count, then["errors"].get(error, 0))) for error, count in now["errors"].items()]
    return CallRate(
        call=now["call"],
        rate=grown(now["calls"], then["calls"]),
        failure_rate=grown(now["failures"], then["failures"]),
        errors=tuple(sorted((each for each in errors if each[1] > 0), key=lambda each: -each[1])),
        mean_ns=now.get("mean_ns", 0),
        p99_ns=now.get("p99_ns", 0),
    )


def arranged(rows: Sequence[Figures], *, sort: Sort, is_reversed: bool, wanted: str) -> list[Figures]:
    """Return those whose name holds the word, or whose id begins with it, in order."""
    found = [each for each in rows if wanted in each.name or each.id.startswith(wanted or "-")]
    found.sort(key=lambda each: each.name)
    found.sort(key=sort.read, reverse=sort.is_downward is not is_reversed)
    return found


def compact(count: float, *, base: int = 1024) -> str:
    """Return a number in at most four characters: `999`, `1.0K`, `12K`, `3.4M`."""
    if count < 999.5:
        return f"{count:.0f}"
    for unit in "KMGTP":
        count /= base
        if count < 9.95:
            return f"{count:.1f}{unit}"
        if count < 999.5:
            return f"{count:.0f}{unit}"
    return f"{count:.0f}E"


def percent(share: float | None) -> str:
    """Return at most five characters: `99.9`, `1600`, `-`."""
    if share is None:
        return "-"
    return f"{share:.1f}" if share < 999.5 else f"{share:.0f}"


def wait(share: float | None) -> str:
    """Return a pressure in at most three characters."""
    return "-" if share is None else f"{min(share, 100.0):.0f}"


def count(rate: float | None) -> str:
    """Return how often in a second something happened."""
    return "-" if rate is None else compact(rate, base=1000)


def duration(ns: int) -> str:
    """Return a duration in at most five characters: `850ns`, `1.2µs`, `33ms`; 0: nothing was timed."""
    if not ns:
        return "-"
    value = float(ns)
    for unit in ("ns", "µs", "ms"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 9.95 and unit != "ns" else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.1f}s" if value < 9.95 else f"{value:.0f}s"


def graph(values: Sequence[float | None], *, height: int, ceiling: float) -> list[str]:
    """Return the lines of a bar graph, highest first.    None: nothing is known of that time."""
    steps = len(BARS) - 1
    lines = []
    for level in reversed(range(height)):
        cells = []
        for value in values:
            filled = 0 if value is None or ceiling <= 0 else round(value / ceiling * steps * height)
            if value is not None and level == 0:
                filled = max(1, filled)  # what is known to be nothing is drawn, too
            cells.append(BARS[min(steps, max(0, filled - level * steps))])
        lines.append("".join(cells))
    return lines


def placed(
    spans: Sequence[Json], *, count: int, step_s: float, read: Callable[[Json], float]
) -> list[float | None]:
    """Put spans of a history where they belong in a row of so many steps, the last one of which is the newest span's."""
    if not spans:
        return [None] * count
    newest = int(spans[-1]["at"] // step_s)
    values = {newest - int(each["at"] // step_s): read(each) for each in spans if each["seconds"] > 0}
    return [values.get(back) for back in reversed(range(count))]

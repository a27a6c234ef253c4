# SPDX-License-Identifier: Apache-2.0
"""Memory and files on their way while the program still runs, and, when it stands, the rest of them.

Round 1 carries everything, each further one what was written meanwhile, until `rounds.py` says that the program may be
frozen, must be slowed down, or cannot be moved within its pause.  A page is protected before it is read, so what is
written during the reading belongs to the next round.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from insula.kernel.cgroup import Group
from insula.kernel.cgroup.values import CPU_PERIOD_US, Limits
from insula.kernel.page_contents import address_space_pages
from insula.kernel.pagemap import PAGE_BYTES, merge
from insula.migrate.memory import checked_ranges
from insula.migrate.rounds import THROTTLES, Forecast, Round, Step, decide, forecast
from insula.migrate.squeeze import plain_rate
from insula.migrate.track import Last, Range, Tracker, read_pages
from insula.migrate.wire import Wire
from insula.model.errors import PauseTooLong, ProtocolError
from insula.model.migration import Answer, Memory, Probe
from insula.model.units import format_size

RANGES_AT_ONCE = 10_000
"""Of one message, which must fit into a frame."""
PAGES_AT_ONCE = 16_384
"""Of one message: 64 MiB, so that a program that is read is never far behind."""

PROBE_BYTES = 16 << 20
SAMPLES, SAMPLE_PAGES = 64, 16
"""How many pieces of memory are looked at, and how large they are at most, to foresee what compression will do."""
SLOWEST = 0.1
"""Processors that it is thought to use at least."""

Written = Mapping[int, Sequence[Range]]
"""Process → its pages."""


class Reporter(Protocol):
    """How it is told how far this is, and asked whether to go on."""

    def check(self) -> None: ...
    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None: ...
    def message(self, text: str) -> None: ...


class Tree(Protocol):
    """What travels in rounds beside private memory: a tree of files (`files.FileSource`), shared memory (`shared.py`)."""

    work_bytes: int
    """Of the last round, in the measure of `dirty_estimate`: what was sent, or, if that is more, what was compared."""

    def send_round(self, wire: Wire) -> int: ...
    def dirty_estimate(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a pause may cost."""

    max_pause_s: float
    """Infinite: whatever it takes."""
    fixed_s: float
    """Of a pause without any memory."""
    name: str
    """Of the container, for people."""


class Precopy:
    """The rounds of one move."""

    def __init__(
        self,
        wire: Wire,
        *,
        tracker: Tracker,
        trees: Sequence[Tree],
        brake: "Brake",
        rules: Rules,
        reporter: Reporter,
    ) -> None:
        self._wire = wire
        self._tracker = tracker
        self._trees = trees
        self._brake = brake
        self.rules = rules
        self._reporter = reporter
        self._left: Written = {}
        self._outside: dict[int, int] = {}
        self.rounds: list[Round] = []
        self.last: Mapping[int, Last] = {}
        """What there is, when nothing runs any more."""
        self.memory_bytes = 0
        """Of pages, as often as they were sent."""

    def run(self) -> Forecast:
        """Send rounds until the rest fits into the pause.  May be called again: what was left then is sent now.

        Raises: PauseTooLong if it never will; Cancelled; MigrationFailed.
        """
        self._left = _joined(self._left, self._tracker.scan())
        while True:
            self._round()
            seen = forecast(self.rounds, fixed_s=self.rules.fixed_s)
            self._reporter.message(self._sentence(seen))
            match decide(
                self.rounds,
                max_pause_s=self.rules.max_pause_s,
                fixed_s=self.rules.fixed_s,
                throttled=self._brake.step,
            ):
                case Step.FREEZE:
                    return seen
                case Step.THROTTLE:
                    self._brake.tighten()
                case Step.REFUSE:
                    raise self._refusal(seen)
                case Step.AGAIN:
                    pass

    def check_whole(self) -> None:
        """Nothing travels before the freeze: does all of it fit into the pause?  Raises: PauseTooLong."""
        if math.isinf(self.rules.max_pause_s):
            return
        seen = forecast([self._whole()], fixed_s=self.rules.fixed_s)
        if seen.pause_s > self.rules.max_pause_s:
            raise self._refusal(seen)

    def _whole(self) -> Round:
        memory = self._tracker.scan()
        link = probe_link(self._wire)
        if self._wire.is_compressing:
            link = plain_rate(link, samples(memory))
        left = bytes_of(memory) + sum(each.dirty_estimate() for each in self._trees)
        return Round(sent_bytes=int(link), seconds=1.0, left_bytes=left)

    def send_missing(self, pages: Written) -> None:
        """Send what the target still lacks, by pid in the container, while nothing runs.

        Raises: ProtocolError for a process that is not of the container, and for more than it has.
        """
        for inside, ranges in pages.items():
            if inside not in self._outside:
                raise ProtocolError(f"cannot send memory of process {inside}: there is none")
            checked_ranges(ranges)
            asked = sum(each.pages for each in ranges)
            if asked > address_space_pages(self._outside[inside]):
                raise ProtocolError(f"cannot send {asked} pages of process {inside}: it has not so many")
            self._send_process(self._outside[inside], ranges, inside=inside)

    def finish(self) -> None:
        """Send what is left, now that nothing runs any more."""
        self._brake.release()  # CRIU works within the container's limits
        self.last = self._tracker.scan_last()
        written = {pid: each.written for pid, each in self.last.items()}
        self._left = _joined({pid: self._left.get(pid, ()) for pid in written}, written)
        self._send_memory(self._left)
        for tree in self._trees:
            tree.send_round(self._wire)

    def _round(self) -> None:
        began, sent_before = time.monotonic(), self._wire.raw_bytes
        self._send_memory(self._left)
        work = self._wire.raw_bytes - sent_before
        for tree in self._trees:
            self._reporter.check()
            tree.send_round(self._wire)
            work += tree.work_bytes
        self._left = self._tracker.scan()
        self.rounds.append(
            Round(
                sent_bytes=work,
                seconds=time.monotonic() - began,
                left_bytes=bytes_of(self._left) + sum(each.dirty_estimate() for each in self._trees),
            )
        )

    def _send_memory(self, written: Written) -> None:
        total, before = bytes_of(written), self.memory_bytes
        for pid, ranges in written.items():
            inside = inner_pid(pid)
            if inside is not None:
                self._outside[inside] = pid
                self._send_process(pid, ranges, inside=inside)
                self._reporter.progress(self.memory_bytes - before, total)

    def _send_process(self, pid: int, ranges: Sequence[Range], *, inside: int) -> None:
        for part in batches(ranges):
            self._reporter.check()
            self._wire.send(Memory(pid=inside, ranges=tuple((each.start, each.pages) for each in part)))
            with contextlib.closing(read_pages(pid, part)) as pieces:
                self._wire.send_stream(pieces)
            self.memory_bytes += bytes_of({pid: part})

    def _sentence(self, seen: Forecast) -> str:
        return (
            f"round {len(self.rounds)}: writes {format_size(int(seen.written))}/s, left"
            f" {format_size(self.rounds[-1].left_bytes)}, pause about {seen.pause_s * 1000:.0f} ms{self._packed()}"
        )

    def _packed(self) -> str:
        plain, packed = self._wire.raw_bytes, self._wire.sent_bytes
        return f", {format_size(plain)} sent as {format_size(packed)}" if plain != packed else ""

    def _refusal(self, seen: Forecast) -> PauseTooLong:
        return PauseTooLong(
            f"cannot move `{self.rules.name}` within {self.rules.max_pause_s * 1000:.0f} ms: it would stand still for"
            f" about {seen.pause_s * 1000:.0f} ms; it writes {format_size(int(seen.written))}/s and the link carries"
            f" {format_size(int(seen.link))}/s",
            hint="try --max-pause with more, when it writes less, or --mode stop-copy",
        )


def _joined(earlier: Written, later: Written) -> Written:
    """Return what either holds."""
    return {pid: merge((*earlier.get(pid, ()), *later.get(pid, ()))) for pid in {**earlier, **later}}


class Brake:
    """Slows a container down by a CPU quota, step by step, and lets it go again."""

    def __init__(self, group: Group, *, limits: Limits) -> None:
        """limits: those it has."""
        self._group = group
        self._limits = limits
        self._began, self._used_us = time.monotonic(), group.stats().cpu_usage_us
        self._processors = 0.0
        self.step = 0

    def tighten(self) -> None:
        """Give it the next smaller share of what it had."""
        if not self.step:
            seconds = time.monotonic() - self._began
            used_s = (self._group.stats().cpu_usage_us - self._used_us) / 1e6
            self._processors = max(SLOWEST, used_s / max(seconds, SLOWEST))
        quota = int(THROTTLES[self.step] * self._processors * CPU_PERIOD_US)
        self.step += 1
        self._group.limit_cpu(
            self._limits._replace(cpu_quota_us=max(1000, quota), cpu_period_us=CPU_PERIOD_US)
        )

    def release(self) -> None:
        """Give it back what it had, if it still runs here."""
        if self.step:
            self.step = 0
            with suppress(FileNotFoundError):  # it has moved, and its group is gone
                self._group.limit_cpu(self._limits)


def probe_link(wire: Wire) -> float:
    """Measure how many bytes per second the other host takes."""
    piece = os.urandom(1 << 20)  # zeros would travel as their length
    began = time.monotonic()
    wire.send(Probe())
    wire.send_stream(piece for _ in range(PROBE_BYTES // len(piece)))
    wire.expect(Answer)
    return PROBE_BYTES / (time.monotonic() - began)


def samples(written: Written) -> Iterable[bytes]:
    """Read pieces of memory here and there, as they will travel."""
    found = [(pid, each) for pid, ranges in written.items() for each in ranges]
    for pid, each in found[:: max(1, len(found) // SAMPLES)][:SAMPLES]:
        yield from read_pages(pid, (Range(each.start, min(each.pages, SAMPLE_PAGES)),))


def batches(ranges: Iterable[Range]) -> Iterable[tuple[Range, ...]]:
    """Cut ranges into parts that fit into one message each.  Pure."""
    part: list[Range] = []
    pages = 0
    for each in ranges:
        start, left = each.start, each.pages
        while left:
            step = min(left, PAGES_AT_ONCE - pages)
            part.append(Range(start, step))
            pages += step
            start += step * PAGE_BYTES
            left -= step
            if pages == PAGES_AT_ONCE or len(part) == RANGES_AT_ONCE:
                yield tuple(part)
                part, pages = [], 0
    if part:
        yield tuple(part)


def bytes_of(written: Written) -> int:
    """Return how much that is."""
    return sum(each.pages for ranges in written.values() for each in ranges) * PAGE_BYTES


def inner_pid(pid: int) -> int | None:
    """Return a process's id in its own pid namespace; None if it has ended.  Source: proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            for line in status:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None

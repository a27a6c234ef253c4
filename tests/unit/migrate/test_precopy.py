# SPDX-License-Identifier: Apache-2.0
"""Rounds over a real connection, of a program whose memory is a list of pages here."""

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel.pagemap import PAGE_BYTES, Range, merge
from insula.migrate.precopy import PAGES_AT_ONCE, RANGES_AT_ONCE, Precopy, Rules, batches, inner_pid
from insula.migrate.track import Last
from insula.migrate.wire import Wire
from insula.model.errors import MigrationFailed, PauseTooLong, ProtocolError
from insula.model.migration import Answer, Memory, Probe
from waiting import DEADLINE_S


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3 * PAGES_AT_ONCE)), max_size=8))
def test_parts_hold_all_pages_in_order_and_fit_into_a_message(gaps: list[tuple[int, int]]) -> None:
    ranges, at = [], 0x10000
    for gap, pages in gaps:
        ranges.append(Range(at + gap * PAGE_BYTES, pages))
        at = ranges[-1].end
    parts = list(batches(ranges))
    pieces = [each for part in parts for each in part]
    assert merge(pieces) == merge(ranges)
    assert all(one.end <= other.start for one, other in pairwise(pieces))
    assert all(sum(each.pages for each in part) <= PAGES_AT_ONCE for part in parts)
    assert all(0 < len(part) <= RANGES_AT_ONCE for part in parts)


def test_many_small_ranges_are_cut_by_their_number() -> None:
    ranges = [Range(number * 2 * PAGE_BYTES, 1) for number in range(RANGES_AT_ONCE + 1)]
    assert [len(part) for part in batches(ranges)] == [RANGES_AT_ONCE, 1]


def test_a_pid_in_its_own_namespace() -> None:
    assert inner_pid(os.getpid()) is not None
    assert inner_pid(2**22) is None


class Scans:
    """A tracker that finds what it is told, scan after scan, and then nothing."""

    kind = "told"

    def __init__(self, *found: int) -> None:
        self._found = list(found)
        self._memory = bytearray(8 << 20)

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        del protect
        pages = self._found.pop(0) if self._found else 0
        return {os.getpid(): (Range(_mapped(), pages),) if pages else ()}

    def scan_last(self) -> Mapping[int, Last]:
        return {pid: Last(ranges, ranges, ()) for pid, ranges in self.scan().items()}

    def close(self) -> None:
        """Nothing is held."""


def _mapped() -> int:
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "[heap]" in line:
                return int(line.partition("-")[0], 16)
    raise AssertionError("no heap")


class Silent:
    def check(self) -> None: ...
    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None: ...
    def message(self, text: str) -> None: ...


class NoBrake:
    step = 0

    def tighten(self) -> None:
        self.step += 1

    def release(self) -> None:
        self.step = 0


class Target(threading.Thread):
    """Takes whatever comes."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._wire = Wire(connection)
        self.pages: list[int] = []

    def run(self) -> None:
        with suppress(MigrationFailed):  # the source hung up
            while True:
                message = self._wire.receive()
                size = sum(len(piece) for piece in self._wire.receive_stream())
                if isinstance(message, Probe):
                    self._wire.send(Answer())
                elif isinstance(message, Memory):
                    assert size == sum(pages for _start, pages in message.ranges) * PAGE_BYTES
                    self.pages.append(size // PAGE_BYTES)


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Target]]:
    ours, theirs = socket.socketpair()
    target = Target(theirs)
    target.start()
    with theirs:
        with ours:
            yield Wire(ours), target
        target.join(DEADLINE_S)


class Compared:
    """A folder with a large file that is written all the time, in a few places: it is compared, hardly anything is sent."""

    work_bytes = 2 << 30

    def send_round(self, wire: Wire) -> int:
        del wire
        return 0

    def dirty_estimate(self) -> int:
        return 1 << 30


def precopy(
    wire: Wire, scans: Scans, *, max_pause_s: float = 10.0, trees: tuple[Compared, ...] = ()
) -> Precopy:
    return Precopy(
        wire, tracker=scans, trees=trees, brake=NoBrake(), reporter=Silent(),
        rules=Rules(max_pause_s=max_pause_s, fixed_s=0.05, name="web"),
    )  # fmt: skip


def test_one_round_then_what_is_left_and_what_was_written_since(ends: tuple[Wire, Target]) -> None:
    wire, target = ends
    rounds = precopy(wire, Scans(8, 3, 5))
    rounds.run()
    rounds.finish()
    wire.close()
    target.join(DEADLINE_S)
    assert target.pages == [8, 5]  # the 3 of the second scan are among the 5 of the last
    assert rounds.memory_bytes == 13 * PAGE_BYTES


def test_what_was_left_is_sent_by_further_rounds(ends: tuple[Wire, Target]) -> None:
    wire, target = ends
    rounds = precopy(wire, Scans(8, 5, 2))
    rounds.run()  # 5 pages are left, and their marks are gone
    rounds.run()
    rounds.finish()
    wire.close()
    target.join(DEADLINE_S)
    assert target.pages == [8, 5]


def test_a_pause_that_cannot_be_kept_is_refused_with_the_figures(ends: tuple[Wire, Target]) -> None:
    wire, _target = ends
    with pytest.raises(PauseTooLong, match=r"`web` within 10 ms: .* writes .*/s and the link carries .*/s"):
        precopy(wire, Scans(8, 3), max_pause_s=0.01).run()


def test_what_is_only_compared_does_not_look_like_a_slow_link(ends: tuple[Wire, Target]) -> None:
    wire, _target = ends
    assert precopy(wire, Scans(8), max_pause_s=10.0, trees=(Compared(),)).run().link > 200e6


def test_what_does_not_fit_whole_is_refused_before_it_stops(ends: tuple[Wire, Target]) -> None:
    wire, _target = ends
    with pytest.raises(PauseTooLong):
        precopy(wire, Scans(8), max_pause_s=0.01).check_whole()


def test_missing_pages_of_a_stranger_are_not_sent(ends: tuple[Wire, Target]) -> None:
    wire, _target = ends
    with pytest.raises(ProtocolError, match="process 4711"):
        precopy(wire, Scans()).send_missing({4711: (Range(0x10000, 1),)})

# SPDX-License-Identifier: Apache-2.0
"""What a container does, or tries to do, that its profile lacks: found in events, told once, counted.  Pure.

Out of scope: what makes it fail (seccomp, capabilities, a read-only root, the firewall); this looks at the events only, so
what was done before it was refused, or in a way that no event tells, is not here.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from insula.model.folders import CUT, OURS, is_within
from insula.model.monitor import Event, EventKind
from insula.model.peer import parse_peer
from insula.model.profile import Drift, Drifts
from insula.model.spec import AppliedProfile, Enforce
from insula.monitor.describe import is_writing
from insula.monitor.usage import (
    Home,
    changed_folders,
    is_unknown,
    outgoing_peer,
    refused_program,
    serving_ports,
    started_programs,
    tried_folders,
)

MAX_DRIFTS = 1000
"""That are remembered of one run of a container."""
MAX_ANNOUNCED, ANNOUNCED_WITHIN_S = 30, 60.0
"""So many are announced within that time; the others are told to rules and who traces, and counted."""

CALLS, CAPABILITIES, PROGRAMS = "calls", "capabilities", "programs"
WRITTEN, OUTGOING = "written", "outgoing"


class Found(NamedTuple):
    """One thing that a profile lacks."""

    part: str
    thing: str
    is_refused: bool


class Judge:
    """Compares events with a profile.

    capabilities: what the container would have without it.  free: folders that are not its root, such as tmpfs.
    """

    def __init__(
        self, profile: AppliedProfile, *, home: Home, capabilities: frozenset[str], free: tuple[str, ...] = ()
    ) -> None:
        self._profile = profile
        self._home = home
        self._lacked = capabilities - {*(profile.capabilities or capabilities), *profile.refused_capabilities}
        self._free = (*OURS, *free)
        self._outgoing = frozenset(profile.outgoing or ())
        self._is_denied = profile.enforce is Enforce.DENY
        self._serving = serving_ports(profile.serving)

    def judge(self, event: Event) -> Iterator[Found]:
        """Yield what an event does that the profile lacks."""
        match event.kind:
            case EventKind.DRIFT if not event.detail:  # the kernel's: ours have words
                yield Found(CALLS, event.call, self._is_denied)
            case EventKind.CAPABILITY:
                name, _, answer = event.detail.partition(" ")
                if name in self._lacked and (answer == "refused") is self._is_denied:
                    yield Found(CAPABILITIES, name, self._is_denied)
            case EventKind.EXEC | EventKind.FILE if self._profile.programs is not None and (
                programs := self._programs(event)
            ):
                yield from programs
            case EventKind.FILE | EventKind.NETWORK:
                yield from self._folders(event)
                yield from self._peers(event)
            case _:
                return

    def _programs(self, event: Event) -> list[Found]:
        known = {*(self._profile.programs or ()), *self._profile.refused_programs}
        found = [Found(PROGRAMS, each, False) for each in started_programs(event) if each not in known]
        if event.kind is EventKind.EXEC and is_unknown(event):
            found.append(Found(PROGRAMS, CUT, False))
        # One that was started before may be another now: a script whose interpreter was not.
        if (refused := refused_program(event)) and refused not in self._profile.refused_programs:
            found.append(Found(PROGRAMS, refused, self._is_denied))
        return found

    def _folders(self, event: Event) -> Iterator[Found]:
        written = self._profile.written
        if written is None:
            return
        is_refused = event.error == "EROFS"
        known = (*written, *self._free, *(self._profile.refused_folders if is_refused else ()))
        if is_unknown(event) and is_writing(event, is_tried=is_refused) and "/" not in known:
            yield Found(WRITTEN, CUT, is_refused)
        for folder in tried_folders(event) if is_refused else changed_folders(event):
            if not any(is_within(folder, each) for each in known):
                yield Found(WRITTEN, folder, is_refused)

    def _peers(self, event: Event) -> Iterator[Found]:
        if self._profile.outgoing is None:
            return
        peer = outgoing_peer(event, home=self._home, serving=self._serving)
        if peer and not self._is_known(peer):
            yield Found(OUTGOING, peer, self._is_denied)

    def _is_known(self, text: str) -> bool:
        peer = parse_peer(text)
        hosts = (peer.host, "*")
        forms = {str(peer._replace(host=host)) for host in hosts}
        forms |= {form.partition("/")[0] for form in forms if set(peer.protocols) <= {"tcp", "udp"}}
        return peer.is_own or not forms.isdisjoint(self._outgoing)


class Telling(NamedTuple):
    """What becomes of one thing that was found."""

    times: int
    """How often it was, as far as is known."""
    is_told: bool
    """To rules and to who traces: the first, the 10th, the 100th …, and whatever is not remembered."""
    is_announced: bool
    """In `insula events`, where a flood would hide all else."""


@dataclass
class Ledger:
    """What was found in one run of a container."""

    drifts: dict[tuple[str, str], Drift] = field(default_factory=dict)
    not_remembered: int = 0
    """How often something was found for which there was no room."""
    lost_events: int = 0
    _announced_since: float = 0.0
    _announced: int = 0

    def add(self, found: Found, event: Event) -> Telling:
        """Count one.  Returns: who is to be told."""
        key = (found.part, found.thing)
        known = self.drifts.get(key)
        if known is not None and found.part == CALLS and not known.command:  # it is among what was counted
            first_at = min(known.first_at, event.at)
            self.drifts[key] = replace(known, command=event.command, first_at=first_at)
            return Telling(known.count, is_told=False, is_announced=False)
        if known is None and len(self.drifts) >= MAX_DRIFTS:
            self.not_remembered += 1
            return Telling(1, is_told=True, is_announced=False)
        count = 1 if known is None else known.count + 1
        self.drifts[key] = (
            Drift(
                part=found.part, thing=found.thing, count=1, first_at=event.at, last_at=event.at,
                command=event.command, is_refused=found.is_refused,
            )
            if known is None
            else replace(known, count=count, last_at=event.at)
        )  # fmt: skip
        is_told = is_power_of_ten(count)
        return Telling(count, is_told=is_told, is_announced=is_told and self._may_announce())

    def _may_announce(self) -> bool:
        now = time.monotonic()
        if now - self._announced_since > ANNOUNCED_WITHIN_S:
            self._announced_since, self._announced = now, 0
        self._announced += 1
        return self._announced <= MAX_ANNOUNCED

    def knows_call(self, call: str) -> bool:
        """Tell whether a system call is among what was found."""
        return (CALLS, call) in self.drifts

    def count_calls(
        self, counts: Mapping[str, int], *, is_refused: bool = False
    ) -> list[tuple[Found, Telling]]:
        """Take in what the kernel counted: of system calls it tells the first of each only, and that may be lost.

        is_refused: whether such calls are.  Returns: what was not known yet, and who is to be told.
        """
        now = time.time()
        new: list[tuple[Found, Telling]] = []
        for call, count in counts.items():
            known = self.drifts.get((CALLS, call))
            if known is not None:
                self.drifts[CALLS, call] = replace(known, count=max(count, known.count))
            elif len(self.drifts) < MAX_DRIFTS:
                self.drifts[CALLS, call] = Drift(
                    part=CALLS, thing=call, count=count, first_at=now, last_at=now, is_refused=is_refused
                )
                telling = Telling(count, is_told=True, is_announced=self._may_announce())
                new.append((Found(CALLS, call, is_refused), telling))
        return new

    def report(self) -> Drifts:
        """Return what is known now."""
        found = sorted(self.drifts.values(), key=lambda each: -each.last_at)
        return Drifts(drifts=tuple(found), not_remembered=self.not_remembered, lost_events=self.lost_events)


def is_power_of_ten(count: int) -> bool:
    """Tell whether what has been seen so often is to be told: the first, the 10th, the 100th …"""
    return str(count).strip("0") == "1"


def told(event: Event, found: Found, *, count: int) -> Event:
    """Return what watchers and rules are told of something that was found."""
    words = {
        CALLS: "system call",
        PROGRAMS: "program",
        CAPABILITIES: f"capability {found.thing}",
        WRITTEN: "folder",
        OUTGOING: "address",
    }
    times = f", {count} times" if count > 1 else ""
    answer = "refused" if found.is_refused else "not refused"
    return replace(event, kind=EventKind.DRIFT, detail=f"new {words[found.part]}, {answer}{times}")

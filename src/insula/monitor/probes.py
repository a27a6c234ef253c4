# SPDX-License-Identifier: Apache-2.0
"""The programs in the kernel: loaded when somebody first watches, attached only as far as somebody asks.

A program at `sys_enter` or `sys_exit` makes every system call of every process on the host 90 to 190 ns slower, watched
or not; the others cost only what happens.  So which are attached follows from the union of all watches, counting is
done by looks: in a part of the time (ADR 31), the entry of calls is traced only where they are timed (ADR 35), and
events of system calls are told at the calls themselves where the kernel lets us (`call_hooks.py`, ADR 32).  Out of
scope: who watches, when looks are (`collect.py`).  Not for several threads at once.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from insula.kernel import syscalls
from insula.kernel.bpf_map import Map, Ring, Words, possible_processors
from insula.kernel.bpf_object import CAPABILITY_TRACEPOINT, Object, knows_tracepoint
from insula.monitor import call_hooks, layout, shapes
from insula.monitor.call_hooks import CallHooks, CallPrograms, MapFd
from insula.monitor.layout import Count, Durations, Kind
from insula.monitor.slots import Slots

OBJECT = Path(__file__).parent / "programs/watch.bpf.o"
RING_BYTES = 16 << 20
"""Holds about 80,000 events: what comes while a reader is held up for 0.4 s at 200,000 a second."""

_PROGRAMS = {
    Kind.EXEC: "on_exec",
    Kind.FORK: "on_fork",
    Kind.EXIT: "on_process_exit",
    Kind.SIGNAL: "on_signal",
    Kind.OOM: "on_oom",
    Kind.CAPABILITY: "on_capability",
}
_TRACEPOINTS = {"on_capability": CAPABILITY_TRACEPOINT}
"""Of the programs whose tracepoint some kernels since 5.15 lack (cap_capable: before 6.14)."""


class Counting(Enum):
    """How a container's system calls are counted."""

    NOT = "not"
    BY_LOOKS = "by looks"
    """Those of a part of the time, `Probes.looked_s`."""
    EACH = "each"


class _Wish(NamedTuple):
    kinds: frozenset[Kind]
    counting: Counting


class Probes:
    """The loaded programs and their maps."""

    def __init__(
        self,
        *,
        path: Path = OBJECT,
        ring_bytes: int = RING_BYTES,
        load_calls: Callable[[MapFd], CallPrograms] = CallPrograms,
    ) -> None:
        """Load.

        Raises: OSError naming what of libbpf or the kernel refused.
        """
        self.missing = frozenset(
            program for program, tracepoint in _TRACEPOINTS.items() if not knows_tracepoint(tracepoint)
        )
        """Programs that this kernel has no hook for."""
        self._object = Object(str(path), entries={"ring": ring_bytes}, left_out=sorted(self.missing))
        self._processors = possible_processors()
        fd = self._object.map_fd
        self._watched = Map(fd("watched"), key_bytes=layout.CGROUP.size, value_bytes=layout.WATCH.size)
        self._timed = Map(
            fd("timed"), key_bytes=layout.CALL_KEY.size, value_bytes=layout.DURATIONS.size * self._processors
        )
        self._details = {
            name: Map(fd(name), key_bytes=layout.DETAIL_KEY.size, value_bytes=layout.DETAIL.size)
            for name in ("errors", "capabilities", "losses", "strange")
        }
        self._known = Map(fd("known"), key_bytes=layout.CGROUP.size, value_bytes=layout.KNOWN.size)
        self.ring = Ring(fd("ring"), ring_bytes=ring_bytes)
        self._sleeping = Words(fd("sleeping"), entries=1)
        self._slots = Slots(fd)
        self._generation = Map(fd("generation"), key_bytes=4, value_bytes=layout.GENERATION.size)
        self._exits_since = Map(fd("exits_since"), key_bytes=4, value_bytes=layout.SINCE.size)
        table = Map(fd("shapes"), key_bytes=4, value_bytes=layout.SHAPE.size)
        for number, shape in shapes.by_number(syscalls.numbers(os.uname().machine)).items():
            table.put(number.to_bytes(4, sys.byteorder), shape)
        self.calls = CallHooks(lambda: load_calls(fd))
        self._are_covered = False
        self._is_settled = True
        """Whether all that is needed was attached when that was looked at last."""
        self._serial = 0
        self._is_looking = False
        self._is_timing = False
        self._looked_s = 0.0
        self._look_began: float | None = None
        self._held: set[int] = set()
        """Containers whose calls are told that they are not known to make."""
        self._wishes: dict[int, _Wish] = {}
        self._wished: Counter[_Wish] = Counter()
        """By how many containers: there are few that differ."""

    def watch(
        self, cgroup: int, kinds: frozenset[Kind], *, counting: Counting = Counting.NOT, flags: int = 0
    ) -> None:
        """Watch a container from now on as told, in place of what was told before; nothing at all ends it.

        Raises: OSError: ENOSPC, E2BIG: too many are counted, or watched; EMFILE, ENOMEM.  To be told anew then.
        flags: `layout.CONFINED_ONLY`: leave out what a task does before it has its seccomp filter; `CHANGES_ONLY`: of
        files only what changes them, of the network not what is accepted.
        """
        key = layout.CGROUP.pack(cgroup)
        self._serial += 1
        if kinds or counting is not Counting.NOT:
            bits = sum(1 << kind for kind in kinds)
            slot = self._slots.take(cgroup) if counting is not Counting.NOT else layout.NO_SLOT
            self._take_back(cgroup)
            self._wishes[cgroup] = _Wish(kinds, counting)
            self._wished[self._wishes[cgroup]] += 1
            self._watched.put(key, layout.WATCH.pack(bits, slot, self._serial, flags))
        else:
            self._take_back(cgroup)
            self._watched.drop(key)
        try:
            self._attach()
        finally:  # whatever cannot be attached: who is counted no more must not be, its slot is another's soon
            self._have_tasks_look_anew()

    def _have_tasks_look_anew(self) -> None:
        """Have each task look up once more whether, and how, it is watched."""
        self._generation.put(bytes(4), layout.GENERATION.pack(self._serial))

    def _take_back(self, cgroup: int) -> None:
        wish = self._wishes.pop(cgroup, None)
        if wish is not None:
            self._wished[wish] -= 1
            if not self._wished[wish]:
                del self._wished[wish]

    def know(self, cgroup: int, calls: Iterable[int] | None) -> None:
        """Have calls told, as drift, that are not among these; None: none.  Their counts begin anew."""
        key = layout.CGROUP.pack(cgroup)
        _drop(self._details["strange"], cgroup)
        if calls is None:
            self._known.drop(key)
            self._held.discard(cgroup)
        else:
            self._known.put(key, layout.known(calls))
            self._held.add(cgroup)
        self._attach()

    def strange(self, cgroup: int) -> dict[int, int]:
        """Return number of the system call → how often, of those that a container is not known to make."""
        return {number: count for group, number, _, count in self._read("strange") if group == cgroup}

    def wake_reader(self) -> None:
        """Have the next event make the ring readable; those after it do not, until this is called again."""
        self._sleeping.at[0] = 1

    def look(self, *, is_on: bool, is_timing: bool) -> None:
        """Begin or end a look at those that are counted by looks; time the calls of all that are counted, or do not.

        Also, what sees events at the end of calls goes when programs at the calls are in place, and what could not be
        attached is tried again: to be called now and then.  Raises: OSError: EMFILE, ENOMEM.
        """
        has_changed = not self._is_settled or self._are_covered != self.calls.covers(self._kinds)
        if has_changed or (is_on, is_timing) != (self._is_looking, self._is_timing):
            self._is_looking, self._is_timing = is_on, is_timing
            self._attach()

    @property
    def looked_s(self) -> float:
        """For how long the calls of those that are counted were looked at, in seconds since this was loaded."""
        return self._looked_s + (0.0 if self._look_began is None else time.monotonic() - self._look_began)

    def _attach(self) -> None:
        self._is_settled = False
        self.calls.want(self._kinds)
        self._are_covered = self.calls.covers(self._kinds)
        needed = self._needed()
        if self._look_began is not None and "on_exit" not in needed:
            self._looked_s, self._look_began = self.looked_s, None
        for program in self._object.attached - needed:
            self._object.detach(program)
        if "on_exit" in needed - self._object.attached:
            self._exits_since.put(bytes(4), layout.SINCE.pack(time.monotonic_ns()))
        # The entry of calls last: a call whose end is not seen yet would lengthen another.
        for program in sorted(needed, key=lambda each: (each == "on_enter", each)):
            self._object.attach(program)
        if self._look_began is None and "on_exit" in needed:
            self._look_began = time.monotonic()
        self._is_settled = True

    @property
    def _kinds(self) -> frozenset[Kind]:
        return frozenset().union(*(each.kinds for each in self._wished))

    def _needed(self) -> frozenset[str]:
        kinds = self._kinds
        at_the_end = kinds & call_hooks.KINDS if not self._are_covered else frozenset()
        is_held = any(each in self._wishes and Kind.DRIFT in self._wishes[each].kinds for each in self._held)
        counting = {each.counting for each in self._wished}
        is_counted = Counting.EACH in counting or (Counting.BY_LOOKS in counting and self._is_looking)
        needed = {program for kind, program in _PROGRAMS.items() if kind in kinds} - self.missing
        if is_counted or is_held or at_the_end:
            needed.add("on_exit")
        if is_counted and self._is_timing:
            needed.add("on_enter")
        if kinds or counting - {Counting.NOT}:
            needed.add("on_move")
        return frozenset(needed)

    @property
    def attached(self) -> frozenset[str]:
        """The programs that run at their hooks."""
        return self._object.attached | self.calls.attached

    def counts(self, cgroup: int) -> dict[int, Count]:
        """Return number of the system call → how often, of a container; empty: nobody has counted it."""
        return self._slots.read(cgroup)

    def durations(self, cgroups: Container[int]) -> Iterator[tuple[int, int, Durations]]:
        """Return (cgroup, number of the system call, what was timed) of some containers."""
        for key, value in self._timed.items():
            cgroup, number, _ = layout.CALL_KEY.unpack(key)
            if cgroup in cgroups:
                yield cgroup, number, layout.sum_durations(value)

    def errors(self) -> Iterator[tuple[int, int, int, int]]:
        """Return (cgroup, number of the system call, errno, how often)."""
        return self._read("errors")

    def capabilities(self) -> Iterator[tuple[int, int, int, int]]:
        """Return (cgroup, 1 granted or 0 refused, capability, how often)."""
        return self._read("capabilities")

    def lost_events(self, cgroup: int) -> int:
        """Return how many events of a container found the ring full."""
        value = self._details["losses"].get(layout.DETAIL_KEY.pack(cgroup, 0, 0))
        return layout.DETAIL.unpack(value)[0] if value else 0

    def losses(self) -> dict[int, int]:
        """Return cgroup → how many of its events found the ring full, of those of which one did."""
        return {cgroup: count for cgroup, _, _, count in self._read("losses")}

    def _read(self, name: str) -> Iterator[tuple[int, int, int, int]]:
        for key, value in self._details[name].items():
            yield (*layout.DETAIL_KEY.unpack(key), *layout.DETAIL.unpack(value))

    def take_capabilities(self, cgroup: int) -> Iterator[tuple[int, int, int]]:
        """Return (1 granted or 0 refused, capability, how often) of a container; the next use of each is told again."""
        table = self._details["capabilities"]
        for key, value in list(table.items()):
            group, granted, capability = layout.DETAIL_KEY.unpack(key)
            if group == cgroup:
                table.drop(key)
                yield granted, capability, layout.DETAIL.unpack(value)[0]

    def forget_calls(self, cgroup: int) -> None:
        """Drop what was counted of the system calls of a container whose calls nobody counts any more."""
        self._slots.give_back(cgroup)
        for table in (self._timed, self._details["errors"]):
            _drop(table, cgroup)

    def forget(self, cgroup: int) -> None:
        """Drop which capabilities were told, and what was lost, of a container that nobody watches any more."""
        for name in ("capabilities", "losses"):
            _drop(self._details[name], cgroup)

    def close(self, *, at_once: bool = False) -> None:
        """Take everything out of the kernel.  at_once: what takes time there is left to a process of its own."""
        for shared in (self.ring, self._sleeping, self._slots):
            shared.close()
        self.calls.close(at_once=at_once)
        self._object.close()


def _drop(table: Map, cgroup: int) -> None:
    for key in [key for key, _ in table.items() if layout.CGROUP.unpack_from(key)[0] == cgroup]:
        table.drop(key)

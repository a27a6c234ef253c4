# SPDX-License-Identifier: Apache-2.0
"""The counters of system calls in the kernel: a map for each container that is counted, read only as far as it changed.

    counts   by slot: the container's own array, each processor's, by number of the call
    touched  by slot: something was counted since we wrote 0
    used     by slot, a bit by number: it was ever counted

A container at rest costs a look at a word of memory; one that does little, a call of the kernel for each number.
Not for several threads at once.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from insula.kernel.bpf_map import Map, Words, create_per_cpu_array, possible_processors
from insula.monitor import layout
from insula.monitor.layout import Count

FEW = 30
"""Numbers up to which each is read alone: all at once take as long as so many."""


@dataclass(slots=True)
class _Slot:
    place: int
    fd: int
    table: Map
    last: dict[int, Count] = field(default_factory=dict)
    """As it was read last."""


class Slots:
    """Which containers are counted, and how often they made which call.  By their cgroups' ids."""

    def __init__(self, map_fd: Callable[[str], int]) -> None:
        """map_fd: name of a loaded map → its descriptor."""
        self._value_bytes = layout.COUNT.size * possible_processors()
        self._none = bytes(self._value_bytes)
        self._counts = Map(map_fd("counts"), key_bytes=4, value_bytes=4)
        self._touched = Words(map_fd("touched"), entries=layout.SLOTS)
        self._used = Words(map_fd("used"), entries=layout.SLOTS * layout.USED_WORDS)
        self._slots: dict[int, _Slot] = {}
        self._free = list(range(layout.SLOTS - 1, -1, -1))

    def take(self, cgroup: int) -> int:
        """Return a container's place, which it has from now on.  Raises: OSError: ENOSPC if there is none left."""
        if cgroup not in self._slots:
            if not self._free:
                raise OSError(errno.ENOSPC, f"cannot count more than {layout.SLOTS} containers at once")
            fd = create_per_cpu_array(value_bytes=layout.COUNT.size, entries=layout.SYSCALLS)
            place = self._free.pop()
            self._slots[cgroup] = _Slot(place, fd, Map(fd, key_bytes=4, value_bytes=self._value_bytes))
            self._counts.put(_key(place), _key(fd))
        return self._slots[cgroup].place

    def give_back(self, cgroup: int) -> None:
        """Drop what was counted of a container."""
        slot = self._slots.pop(cgroup, None)
        if slot is not None:
            self._counts.drop(_key(slot.place))
            os.close(slot.fd)
            self._touched.at[slot.place] = 0
            for word in self._words(slot.place):
                self._used.at[word] = 0
            self._free.append(slot.place)

    def read(self, cgroup: int) -> dict[int, Count]:
        """Return number of the system call → how often; empty: nobody has counted it."""
        slot = self._slots.get(cgroup)
        if slot is None:
            return {}
        if self._touched.at[slot.place]:
            self._touched.at[slot.place] = 0  # before it is read: what comes meanwhile is read again
            slot.last = self._read(slot)
        return slot.last

    def _read(self, slot: _Slot) -> dict[int, Count]:
        numbers, size = list(self._numbers(slot.place)), self._value_bytes
        if len(numbers) <= FEW:
            found = {number: slot.table.get(_key(number)) or self._none for number in numbers}
        else:
            whole = slot.table.array(layout.SYSCALLS)
            found = {number: whole[number * size : (number + 1) * size] for number in numbers}
        return {number: layout.sum_counts(value) for number, value in found.items() if value != self._none}

    def _words(self, place: int) -> range:
        return range(place * layout.USED_WORDS, (place + 1) * layout.USED_WORDS)

    def _numbers(self, place: int) -> Iterator[int]:
        for index, at in enumerate(self._words(place)):
            word = self._used.at[at]
            while word:
                yield 64 * index + (word & -word).bit_length() - 1
                word &= word - 1

    def close(self) -> None:
        """Let go of all; the maps go with the object that they were loaded with."""
        for shared in (self._touched, self._used):
            shared.close()
        for slot in self._slots.values():
            os.close(slot.fd)


def _key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)

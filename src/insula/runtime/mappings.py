# SPDX-License-Identifier: Apache-2.0
"""What CRIU reads in /proc/PID/smaps, learned before the pause: to make that file, the kernel walks through every page (13 ms per GB).

CRIU takes from it the lines of /proc/PID/maps, which cost nothing, and each mapping's VmFlags, which stand nowhere else.  So the
flags are read while the program runs; when it stands, and no mapping is another than then, they are put to the lines of now.
Only an madvise(2) in between changes flags and no line: `check` reads the kernel's own smaps again, beside what else happens in
the pause, before it is too late.  (mlock(2) does so, too; a process with locked memory is not described.)

Out of scope: how CRIU gets to see it (`hidden.py`).  Sources: proc_pid_smaps(5); CRIU's `criu/proc_parse.c`, `parse_smaps`;
the kernel's `fs/proc/task_mmu.c`.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from insula.model.errors import MigrationFailed

_DIGITS = b"0123456789abcdef"
_FLAGS = b"VmFlags:"
_READ = frozenset(b"gd lo ht sr rr dc dd mg hg nh io pf sh mw".split())
"""What CRIU takes from flags (its `parse_vmflags`), but whether room was reserved (`nr`), by which nothing can be told apart."""


MIN_RESERVED_BYTES = 1 << 30
_RESERVED = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ---p 0+ 00:00 0 *")
_ADVICE = {b"sr": 2, b"rr": 1, b"dc": 10, b"mg": 12, b"hg": 14, b"nh": 15, b"dd": 16}
"""Flag to the number of its madvise(2)."""
_OTHERWISE_KNOWN = frozenset(b"mr mw me nr ac sd um uw".split())
"""Flags that make no difference to who maps it again."""


class Reserve(NamedTuple):
    """Private address space that nobody may touch: a program has reserved it, to use parts of it later."""

    start: int
    end: int
    advice: int
    """A bit for each madvise(2) that holds for it."""


class Described(NamedTuple):
    """Mappings by their lines in /proc/PID/maps, in their order; each with its line of flags."""

    flags: Mapping[bytes, bytes]

    def of_now(self, maps: bytes) -> "Described | None":
        """Return those that there still are.  maps: those of now.  None: there are others than were described."""
        lines = maps.splitlines()
        if any(line not in self.flags for line in lines):
            return None
        return Described({line: self.flags[line] for line in lines})

    def smaps(self, *, without: Collection[Reserve] = ()) -> bytes:
        """Return what CRIU needs of smaps.  without: as of `reserves`."""
        kept = (each for each in self.flags.items() if _reserve(*each) not in without)
        return b"".join(b"%b\n%b\n" % each for each in kept)

    def reserves(self) -> tuple[Reserve, ...]:
        """Return what is better left out: CRIU would go through each page that it could have."""
        found = (_reserve(*each) for each in self.flags.items())
        return tuple(each for each in found if each is not None)

    def check(self, now: "Described") -> None:
        """Compare with what the kernel says now; neighbours that are one mapping now are the same as before.

        Raises: MigrationFailed.
        """
        areas = now.areas()
        starts = [each[0] for each in areas]
        for start, end, flags in self.areas():
            at = bisect_right(starts, start) - 1
            if at < 0 or areas[at][1] < end:
                raise MigrationFailed(
                    f"cannot move it now: its mapping at {start:x} has changed while it was frozen"
                )
            if changed := areas[at][2] ^ flags:
                words = b" ".join(sorted(changed)).decode()
                raise MigrationFailed(
                    f"cannot move it now: it changed the advice for its memory at {start:x} (madvise: {words}) as it was frozen",
                    hint="try again",
                )

    def areas(self) -> Sequence[tuple[int, int, frozenset[bytes]]]:
        """Return first address, address behind the last byte, and flags of each mapping; sorted."""
        found = []
        for line, flags in self.flags.items():
            start, _, end = line.partition(b" ")[0].partition(b"-")
            found.append((int(start, 16), int(end, 16), frozenset(flags.split()) & _READ))
        return found


def _reserve(line: bytes, flags: bytes) -> Reserve | None:
    match = _RESERVED.fullmatch(line)
    if match is None:
        return None
    start, end = int(match[1], 16), int(match[2], 16)
    words = set(flags.removeprefix(_FLAGS).split())
    if end - start < MIN_RESERVED_BYTES or words - _OTHERWISE_KNOWN - _ADVICE.keys():
        return None
    return Reserve(start, end, sum(1 << _ADVICE[word] for word in words & _ADVICE.keys()))


def reserved_bytes(maps: bytes) -> int:
    """Return how much reserves there are in /proc/PID/maps, as far as it tells.  Pure."""
    found = (_reserve(line, b"") for line in maps.splitlines())
    return sum(each.end - each.start for each in found if each is not None)


def describe(pid: int) -> Described:
    """Read a process's mappings with their flags.  Raises: OSError if it has ended."""
    with open(f"/proc/{pid}/smaps", "rb") as file:
        return parse_smaps(file.read())


def parse_smaps(text: bytes) -> Described:
    """Find lines and flags in /proc/PID/smaps.  Pure."""
    found: dict[bytes, bytes] = {}
    line = b""
    for each in text.splitlines():
        if each[:1] in _DIGITS:
            line = each
        elif each.startswith(_FLAGS):
            found[line] = each
    return Described(found)

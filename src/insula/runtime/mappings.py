# SPDX-License-Identifier: Apache-2.0
"""What CRIU reads in /proc/PID/smaps, learned before the pause: to make that file, the kernel walks through every page (13 ms per GB).

CRIU takes from it the lines of /proc/PID/maps, which cost nothing, and each mapping's VmFlags, which stand nowhere else.  So the
flags are read while the program runs; when it stands, and no mapping is another than then, they are put to the lines of now.
Only an madvise(2) in between changes flags and no line: `check` reads the kernel's own smaps again, beside what else happens in
the pause, before it is too late.  (mlock(2) does so, too; a process with locked memory is not described.)

Out of scope: how CRIU gets to see it (`hidden.py`).  Sources: proc_pid_smaps(5); CRIU's `criu/proc_parse.c`, `parse_smaps`;
the kernel's `fs/proc/task_mmu.c`.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from insula.model.errors import MigrationFailed

_DIGITS = b"0123456789abcdef"
_FLAGS = b"VmFlags:"
_READ = frozenset(b"gd lo ht sr rr dc dd mg hg nh io pf sh mw".split())
"""What CRIU takes from flags (its `parse_vmflags`), but whether room was reserved (`nr`), by which nothing can be told apart."""


class Described(NamedTuple):
    """Mappings by their lines in /proc/PID/maps, in their order; each with its line of flags."""

    flags: Mapping[bytes, bytes]

    def of_now(self, maps: bytes) -> "Described | None":
        """Return those that there still are.  maps: those of now.  None: there are others than were described."""
        lines = maps.splitlines()
        if any(line not in self.flags for line in lines):
            return None
        return Described({line: self.flags[line] for line in lines})

    def smaps(self) -> bytes:
        """Return what CRIU needs of smaps."""
        return b"".join(b"%b\n%b\n" % each for each in self.flags.items())

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

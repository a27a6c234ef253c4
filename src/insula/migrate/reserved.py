# SPDX-License-Identifier: Apache-2.0
"""Address space that CRIU could not list: found before anything stops.

A dump that leaves memory out keeps the list of its pages until the end, and CRIU allocates that list at its longest possible:
an iovec for each page of private address space, used or not: 4 GiB for each TiB, and the kernel gives no program more than the
host has.  Space that nobody may touch (MariaDB as it comes reserves 8 TiB so) is not shown to CRIU (`runtime/hidden.py`) and does
not count.  A checkpoint to disk needs no such list.

Sources: CRIU's `mem.c` (create_page_pipe); overcommit-accounting.rst; proc_pid_maps(5).
"""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from insula.kernel.pagemap import PAGE_BYTES
from insula.model.errors import CheckpointFailed
from insula.runtime.hidden import much_left_out_bytes

IOVEC_BYTES = 16
_CURE = "start it so that it reserves less, or by PROT_NONE"


def refuse_reserved(name: str, pids: Iterable[int]) -> None:
    """Refuse to migrate a container with more address space than CRIU can list here.

    Raises: CheckpointFailed naming the process.
    """
    most_bytes = _most_allocated()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            reserved = reserved_bytes(Path(f"/proc/{pid}/maps").read_text(errors="replace"))
            reserved -= much_left_out_bytes(pid)
            needed = reserved // PAGE_BYTES * IOVEC_BYTES
            if needed > most_bytes:
                program = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
                raise CheckpointFailed(
                    f"cannot migrate `{name}`: `{program}` ({pid}) has reserved {reserved >> 30} GiB of address space, and"
                    f" CRIU needs {needed >> 20} MiB at once to list it",
                    hint=_CURE,
                )


def reserved_bytes(text: str) -> int:
    """Return how much private address space /proc/PID/maps lists.  Pure."""
    areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ...p", text, re.MULTILINE)
    return sum(int(end, 16) - int(start, 16) for start, end in areas)


def _most_allocated() -> int:
    """Return how much a program may allocate at once on this host."""
    mode = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    if mode == "1":
        return 1 << 62
    text = Path("/proc/meminfo").read_text()
    names = ("CommitLimit",) if mode == "2" else ("MemTotal", "SwapTotal")
    return sum(
        int(each) << 10 for each in re.findall(rf"^(?:{'|'.join(names)}):\s+(\d+)", text, re.MULTILINE)
    )

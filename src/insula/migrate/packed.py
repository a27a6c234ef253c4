# SPDX-License-Identifier: Apache-2.0
"""What a container has in the memory of its own tmpfs mounts (/dev/shm, --tmpfs): CRIU packs it in the pause.

It does so with tar (`boot/packer.py`), and nothing of it can travel ahead, so the pause must be forecast with it.
Out of scope: /dev itself, which is made anew on the target.
Source: CRIU's `criu/filesystems.c`, `tmpfs_dump`; proc_pid_mountinfo(5).
"""

import os
from pathlib import Path

from insula.kernel.paths import open_in_root
from insula.migrate.wire import Wire

PACKING = 3
"""To pack a byte, send it and unpack it takes as long as to send so many."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class PackedSource:
    """One of the trees of `Precopy`, of which nothing travels in rounds."""

    work_bytes = 0

    def __init__(self, pid: int) -> None:
        """pid: of the container's first process."""
        self._pid = pid

    def send_round(self, wire: Wire) -> int:
        """Send nothing."""
        del wire
        return 0

    def dirty_estimate(self) -> int:
        """Return what the pause will cost because of it, as bytes that are sent.  Raises: OSError."""
        root = os.open(f"/proc/{self._pid}/root", _FOLDER)
        try:
            text = Path(f"/proc/{self._pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
            return PACKING * sum(_used_bytes(root, place) for place in tmpfs_places(text))
        finally:
            os.close(root)


def tmpfs_places(text: str) -> tuple[str, ...]:
    """Return where tmpfs are mounted that can be written to, except /dev, out of /proc/PID/mountinfo.  Pure."""
    found, devices = dict[str, str](), set[str]()
    for line in text.splitlines():
        mounted, _, filesystem = line.partition(" - ")
        words = mounted.split()
        if filesystem.startswith("tmpfs "):
            found.setdefault(words[2], words[4].replace("\\040", " "))
            devices |= {words[2]} if words[4] == "/dev" or "ro" in words[5].split(",") else set()
    return tuple(place for device, place in found.items() if device not in devices)


def _used_bytes(root: int, place: str) -> int:
    try:
        folder = open_in_root(root, place, flags=os.O_PATH | os.O_CLOEXEC)
    except OSError:  # hidden by another mount
        return 0
    try:
        found = os.fstatvfs(folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize
    finally:
        os.close(folder)

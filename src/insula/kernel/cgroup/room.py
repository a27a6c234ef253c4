# SPDX-License-Identifier: Apache-2.0
"""How much memory the limits above our groups leave.  Out of scope: what the machine has free (`/proc/meminfo`).

Sources: `Documentation/admin-guide/cgroup-v1/memory.rst` and cgroup-v2.rst of the kernel.
"""

import os

from insula.kernel.cgroup.hierarchy import Hierarchies

_UNLIMITED = 1 << 60
_FILES = (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current"))


def memory_room(hierarchies: Hierarchies, parent_name: str) -> int | None:
    """Return the bytes that groups beneath a parent can still use by every limit above them; None without any limit."""
    memory = hierarchies.find_v1("memory") or hierarchies.v2
    if memory is None:
        return None
    rooms = []
    place = os.path.join(memory.base, parent_name)
    while place.startswith(memory.mount_point):
        room = _room_of(place)
        if room is not None:
            rooms.append(room)
        if place == memory.mount_point:
            break
        place = os.path.dirname(place)
    return min(rooms, default=None)


def _room_of(directory: str) -> int | None:
    for limit_name, usage_name in _FILES:
        limit, usage = _read(directory, limit_name), _read(directory, usage_name)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            return max(0, limit - usage)
    return None


def _read(directory: str, name: str) -> int | None:
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            text = file.read().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(text) if text.isdigit() else None

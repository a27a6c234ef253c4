# SPDX-License-Identifier: Apache-2.0
"""What the kernel counts once for all containers, because root made their user namespaces: so that none can take it all.

Two kinds.  Settings of the host whose objects cost memory, which is counted per container: they are raised, once, to where
memory runs out first.  Resource limits that a user namespace inherits as the ceiling of all of its maker's namespaces:
the spawner's own are lifted, and each program gets what they were; where that is not permitted (no CAP_SYS_RESOURCE), each
program gets a share.  Sources: `Documentation/admin-guide/sysctl/{fs,kernel}.rst`, inotify(7), getrlimit(2);
`kernel/ucount.c`, `inc_rlimit_ucounts`; docs/adr/0024.  Standard library only.
"""

import os
import resource
from pathlib import Path

#: Setting below /proc/sys → at least.
SETTINGS = {
    "fs/inotify/max_user_instances": 1 << 20,
    "fs/inotify/max_user_watches": 1 << 24,
    "fs/aio-max-nr": 1 << 26,
    "kernel/pty/max": 1 << 16,
    # A session keyring for each container's first process and each exec, all in the name of the tenant's first uid.
    "kernel/keys/maxkeys": 1 << 20,
    "kernel/keys/maxbytes": 1 << 25,
}
LIMITS = (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE)
SHARES = 8
"""How many containers must take their whole share before others feel it, where the ceiling cannot be lifted."""

#: What each program gets: limit → soft and hard.  Set by `prepare`, inherited by every fork of the spawner.
_of_programs: dict[int, tuple[int, int]] = {}


def prepare() -> list[str]:
    """In the spawner, once.  Returns: what could not be raised, for the log."""
    refused = [name for name, value in SETTINGS.items() if not _raised(Path("/proc/sys", name), value)]
    for limit in LIMITS:
        soft, hard = resource.getrlimit(limit)
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, OSError):
            if hard != resource.RLIM_INFINITY:
                soft = hard = hard // SHARES
        _of_programs[limit] = (soft, hard)
    return refused


def _raised(setting: Path, value: int) -> bool:
    try:
        if int(setting.read_text(encoding="ascii")) < value:
            descriptor = os.open(setting, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(value).encode())
            finally:
                os.close(descriptor)
    except (OSError, ValueError):
        return False
    return True


def limit_program() -> None:
    """In a child, before its program's own limits: what other containers may count on is not its to take.  Raises: OSError."""
    for limit, values in _of_programs.items():
        resource.setrlimit(limit, values)

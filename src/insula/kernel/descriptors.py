# SPDX-License-Identifier: Apache-2.0
"""How many descriptors a process may have: the soft limit of this one raised, that of another one set.

Who started us chose the soft limit for programs that use select(2), which cannot name a descriptor above 1023; we do not.
What we start inherits it, so containers are given the one from before.  Sources: getrlimit(2), prlimit(2).
"""

import resource

ENOUGH = 65536
"""Some programs that a daemon starts close every descriptor up to the limit one by one; where the hard limit is 2³⁰ they
would take minutes."""


def raise_limit() -> int:
    """Let this process have as many descriptors as the hard limit and reason allow.  Returns: the soft limit from before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return soft
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return soft


def limit(pid: int, *, soft: int) -> None:
    """Set the soft limit of another process.  Raises: ProcessLookupError, PermissionError, ValueError above its hard one."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

# SPDX-License-Identifier: Apache-2.0
"""What insulad has done for a tenant by a process of its own is charged to the tenant: a cgroup below the tenant's.

The tenant's limits hold for it, and its processors are taken from the tenant's share; a tenant without containers gets its
limits here, too.  What an insulad that was killed has left goes when the next one starts (`end_leftovers`).  Out of scope:
what the processes do (`unpacking.py`, `building.py`, `archive.py`).
"""

import logging
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

from insula.kernel.cgroup import Group
from insula.model.errors import LimitRefused
from insula.runtime import quotas
from insula.runtime.context import Runtime
from insula.runtime.undo import attempt
from insula.runtime.worker_words import READY

LOG = logging.getLogger(__name__)

LEAVING_SECONDS = 5.0
"""For what was told to end, and for the kernel to let go of its cgroup."""


class Charge(StrEnum):
    """What for.  The value begins the cgroup's name, and is the verb in an error."""

    UNPACK = "unpack"
    BUILD = "build"
    COPY = "copy"


@contextmanager
def charged_group(runtime: Runtime, tenant: str, *, charge: Charge) -> Iterator[Group | None]:
    """Make a cgroup below the tenant's for as long as the block lasts; what is in it at the end is killed.

    Yields: None if the spawner is older than tenants' cgroups.  Raises: LimitRefused.
    """
    if not runtime.spawner.knows_tenants:
        yield None
        return
    quotas.ready_group(runtime, tenant)
    group = Group(runtime.hierarchies(), runtime.tenant_parent(tenant), f"{charge}-{secrets.token_hex(6)}")
    try:
        try:
            group.create()
        except OSError as error:
            raise LimitRefused(
                f"cannot {charge} within the limits of tenant `{tenant}`: {error.strerror}"
            ) from error
        yield group
    finally:
        end(group)


def let_begin(process: subprocess.Popen[bytes], group: Group | None) -> None:
    """Move a worker that waits (`worker_words.wait_ready`) into a charged group, and let it begin."""
    with suppress(ProcessLookupError, BrokenPipeError):  # it has failed already
        if group is not None:
            group.attach(process.pid)
        if process.stdin is not None:
            os.write(process.stdin.fileno(), READY)


def end(group: Group) -> None:
    """Kill what is in a group, and remove it."""
    with suppress(
        OSError
    ):  # ENOTSUP without a v2 tree: nothing but its first process was in it, which has ended
        group.kill()
    attempt(group.delete, time.monotonic() + LEAVING_SECONDS)


def end_leftovers(runtime: Runtime) -> None:
    """Kill what an earlier insulad had under way for tenants.  Call once, before anything is charged."""
    if not runtime.spawner.knows_tenants:
        return
    kinds = tuple(f"{each}-" for each in Charge)
    for tenant in runtime.store.list_tenants():
        for name in runtime.tenant_group(tenant.name).children():
            if name.startswith(kinds):
                LOG.warning("ending what an earlier insulad began", extra={"fields": {"cgroup": name}})
                end(Group(runtime.hierarchies(), runtime.tenant_parent(tenant.name), name))

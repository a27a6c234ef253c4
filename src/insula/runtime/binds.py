# SPDX-License-Identifier: Apache-2.0
"""Bind mounts that users asked for: opened with their own rights at each start, mounted by that handle.

    source ─► the granted folder it lies below, opened as the user
              ─► the rest of the path, beneath that folder, opened as the user: readable, and writable or read-only
                 ─► the handle ─► spawner: clone of that mount, nosuid, nodev,
                                  uid and gid of the user on disk = root in the container; nobody else's are shown as anybody's

So a container gets nothing that its maker does not have, and what is made inside belongs to the maker outside.  An admin's
bind mounts are opened by the spawner as root, with all ids.  Source: mount_setattr(2), MOUNT_ATTR_IDMAP.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from insula.boot.protocol import MountPlan, StartPlan
from insula.kernel.as_user import Ids, open_below
from insula.model.errors import InvalidSpec, NotPermitted
from insula.model.permit import Permit
from insula.model.record import ContainerRecord
from insula.model.spec import MountKind, MountWish
from insula.runtime.context import Runtime
from insula.runtime.permitted import ceiling_of, check_permitted

_REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EXDEV,
        errno.ELOOP,
        errno.EINVAL,
        errno.ENAMETOOLONG,
    }
)
"""What the path and its rights can be the reason of; anything else is the machine's fault."""


def permitted_now(runtime: Runtime, record: ContainerRecord) -> Permit:
    """Return what a container's maker may ask for now.  Raises: NotPermitted if the container asks for more."""
    permit = runtime.permits.of_creator(record)
    check_permitted(record.spec, permit)
    return permit


@contextmanager
def opened(record: ContainerRecord, plan: StartPlan, *, permit: Permit) -> Iterator[StartPlan]:
    """Open a container's bind mounts; they stay open in the block.

    Yields: the plan with handles in place of the paths.  Raises: NotPermitted.
    """
    if permit.is_everything:
        yield plan
        return
    with ExitStack() as held:
        mounts = tuple(
            _with_handle(each, wish, permit=permit, held=held)
            for each, wish in zip(plan.mounts, record.spec.mounts, strict=True)
        )
        yield replace(plan, mounts=mounts)


def check_binds(mounts: tuple[MountWish, ...], permit: Permit) -> None:
    """Open each bind mount as its start will, and let go of it.

    Raises: NotPermitted; InvalidSpec for a path that is not there (an admin learns that, a user is only refused).
    """
    for each in mounts:
        if each.kind is not MountKind.BIND:
            continue
        if not permit.is_everything:
            os.close(_open(each, permit)[0])
        elif not os.path.exists(each.source):
            raise InvalidSpec(f"cannot mount `{each.source}`: no such path on the host")


def _with_handle(plan: MountPlan, wish: MountWish, *, permit: Permit, held: ExitStack) -> MountPlan:
    if wish.kind is not MountKind.BIND:
        return plan
    descriptor, owner = _open(wish, permit)
    held.callback(os.close, descriptor)
    # The spawner opens this name, which is the handle itself: nothing is resolved again.  See proc_pid_fd(5).
    source = f"/proc/{os.getpid()}/fd/{descriptor}"
    return replace(plan, source=source, owner=owner)


def _open(wish: MountWish, permit: Permit) -> tuple[int, tuple[int, int]]:
    """Open what is mounted.  Returns: its descriptor, and the uid and gid with whose rights it was opened."""
    ceiling, rest = ceiling_of(wish, permit)
    user = permit.opens_as
    if user is None:
        raise NotPermitted(f"cannot mount host folder `{wish.source}`: its maker has no account here")
    ids = Ids(user.uid, user.gid, sorted(user.groups))
    try:
        return open_below(ids, ceiling, path=rest, writable=not wish.read_only), (user.uid, user.gid)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        reason = (error.strerror or "").rpartition(": ")[2].lower()
        raise NotPermitted(
            f"cannot mount host folder `{wish.source}`: {reason} for user `{user.name}`",
            hint="it has to be yours to read, and to write unless it is mounted `:ro`, and no link may lead out of what is granted",
        ) from error

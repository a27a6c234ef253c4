# SPDX-License-Identifier: Apache-2.0
"""Pause and unpause: the cgroup v2 freezer, which works on hybrid hosts too.

The v1 freezer is never used: with one stopped process in the group it hangs a later dump for ever.
Source: `Documentation/admin-guide/cgroup-v2.rst`, "cgroup.freeze".
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from insula.model.errors import WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import Event, after
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime

FREEZE_SECONDS = 10.0


def pause(grant: Grant, runtime: Runtime, ref: str) -> None:
    """Stop every process of a container where it is.  Raises: WrongState."""
    found = runtime.find(grant, ref)
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.PAUSE, name=record.name)
        group = runtime.group(record)
        with _alive(record):
            group.freeze()
            try:
                group.wait_frozen(time.monotonic() + FREEZE_SECONDS)
            except TimeoutError:
                group.thaw()
                raise WrongState(f"cannot pause `{record.name}`: a process hangs in the kernel") from None
        runtime.store.update_container(replace(record, status=status))


def unpause(grant: Grant, runtime: Runtime, ref: str) -> None:
    """Let them run on.  Raises: WrongState."""
    found = runtime.find(grant, ref)
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.UNPAUSE, name=record.name)
        runtime.group(record).thaw()
        runtime.store.update_container(replace(record, status=status))


@contextmanager
def _alive(record: ContainerRecord) -> Iterator[None]:
    """Its groups go as soon as it has ended, its status follows a moment later."""
    try:
        yield
    except FileNotFoundError:
        raise WrongState(f"container `{record.name}` is not running: it has just ended") from None

# SPDX-License-Identifier: Apache-2.0
"""Restore: make a stopped container run again from a checkpoint, where it was."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from insula.image.tarball import Form, unpack_tree
from insula.model.grant import Grant
from insula.model.lifecycle import Event, after
from insula.model.record import ContainerRecord
from insula.runtime import dump
from insula.runtime.checkpoint import UPPER_TAR, Reporter, Result, newest
from insula.runtime.context import Runtime
from insula.runtime.plan import start_plan
from insula.runtime.start import bring_up_network
from insula.runtime.trees import remove_tree


def restore(grant: Grant, runtime: Runtime, ref: str, *, name: str, reporter: Reporter) -> Result:
    """Restore a container from one of its checkpoints; without a name from the newest.

    Raises: WrongState, CheckpointNotFound, RestoreFailed naming the resource and the cure.
    """
    found = runtime.find(grant, ref)
    with runtime.locked(found.id), ExitStack() as undo:
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.RESTORE, name=record.name)
        chosen = runtime.store.get_checkpoint(record.id, name) if name else newest(runtime, record)
        folder = runtime.folders.checkpoint(record.id, chosen.name)
        began = time.monotonic()
        runtime.store.update_container(replace(record, status=status))
        undo.callback(runtime.store.update_container, record)
        reporter.phase("restore")
        if (folder / UPPER_TAR).exists():
            put_back_upper(runtime, record, folder / UPPER_TAR, undo=undo)
        prepared = bring_up_network(runtime, record, undo=undo)
        pid = restore_into(runtime, prepared, folder, undo=undo)
        undo.pop_all()
        remove_tree(_old_upper(runtime, record))
        running = replace(
            prepared, status=after(status, Event.RESTORED), pid=pid, started_at=time.time(), exit_code=None,
            finished_at=0.0, error="", stopped_by_user=False,
        )  # fmt: skip
        runtime.store.update_container(running)
    return {"checkpoint": chosen.name, "restored_ms": round((time.monotonic() - began) * 1000, 1)}


def restore_into(runtime: Runtime, record: ContainerRecord, folder: Path, *, undo: ExitStack) -> int:
    """Prepare the room and restore into it.  Returns: the pid."""
    plan = start_plan(runtime, record)
    runtime.spawner.prepare(plan)
    undo.callback(runtime.spawner.discard, record.id)
    images = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return dump.restore(runtime, record, plan, images=images)
    finally:
        os.close(images)


def _old_upper(runtime: Runtime, record: ContainerRecord) -> Path:
    return runtime.folders.upper(record.id).with_name("upper.old")


def put_back_upper(runtime: Runtime, record: ContainerRecord, tar: Path, *, undo: ExitStack) -> None:
    """Replace the writable layer by the one that was kept with a checkpoint; the one before waits for the outcome."""
    upper = runtime.folders.upper(record.id)
    fresh = upper.with_name("upper.new")
    remove_tree(fresh)
    fresh.mkdir(mode=0o755)
    descriptor = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(tar, "rb") as source:
            unpack_tree(source, descriptor, form=Form.UPPER)
    finally:
        os.close(descriptor)
    old = _old_upper(runtime, record)
    remove_tree(old)
    upper.rename(old)
    undo.callback(_take_back_upper, upper, old)
    fresh.rename(upper)


def _take_back_upper(upper: Path, old: Path) -> None:
    remove_tree(upper)
    old.rename(upper)

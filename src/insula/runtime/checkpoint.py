# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: write the state of a running container to disk, and end it, or let it run on."""

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from insula.image.pack import pack_tree
from insula.image.tarball import Form
from insula.model.errors import CheckpointNotFound, InvalidSpec, NameTaken
from insula.model.grant import Grant
from insula.model.lifecycle import Event, after
from insula.model.record import CheckpointRecord, ContainerRecord
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.plan import start_plan
from insula.runtime.trees import remove_tree

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
UPPER_TAR = "upper.tar"

Result = dict[str, str | int | float | bool]


class Reporter(Protocol):
    """How a long action tells how far it is."""

    def check(self) -> None: ...
    def phase(self, name: str) -> None: ...


def checkpoint(
    grant: Grant, runtime: Runtime, ref: str, *, name: str, leave_running: bool, reporter: Reporter
) -> Result:
    """Write a checkpoint.  On failure the container runs on.

    Raises: WrongState, NameTaken, InvalidSpec, CheckpointFailed naming the resource and the cure.
    """
    found = runtime.find(grant, ref)
    name = name or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    if not _NAME.fullmatch(name):
        raise InvalidSpec(
            f"cannot name a checkpoint `{name[:80]}`", hint="letters, digits, `_`, `.`, `-`, at most 63"
        )
    program = runtime.need_criu()
    with runtime.locked(found.id), ExitStack() as undo:
        record = runtime.store.get_container(found.id)
        status = after(record.status, Event.CHECKPOINT, name=record.name)
        folder = _make_folder(runtime, record, name)
        undo.callback(remove_tree, folder)
        runtime.store.update_container(replace(record, status=status))
        undo.callback(runtime.store.update_container, record)
        reporter.phase("freeze")
        frozen_ms = _dump(runtime, record, folder, leave_running=leave_running)
        made = CheckpointRecord(
            name=name,
            container=record.id,
            tenant=record.tenant,
            created_at=time.time(),
            size_bytes=sum(each.stat().st_size for each in folder.iterdir()),
            criu_version=program.version,
            kernel_release=os.uname().release,
        )
        runtime.store.save_checkpoint(made)
        undo.pop_all()
        if leave_running:
            runtime.store.update_container(record)
    return {"checkpoint": name, "size_bytes": made.size_bytes, "frozen_ms": frozen_ms}


def _make_folder(runtime: Runtime, record: ContainerRecord, name: str) -> Path:
    folder = runtime.folders.checkpoint(record.id, name)
    if any(each.name == name for each in runtime.store.list_checkpoints(record.id)):
        raise NameTaken(f"cannot checkpoint `{record.name}` as `{name}`: it has one of that name")
    remove_tree(folder)  # what a killed insulad left half-written
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    # CRIU reopens it from within the user namespace; the folders above it are root's alone.
    folder.mkdir(mode=0o755)
    return folder


def _dump(runtime: Runtime, record: ContainerRecord, folder: Path, *, leave_running: bool) -> float:
    began = 0.0
    plan = start_plan(runtime, record)
    images = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def frozen() -> None:
        nonlocal began
        began = time.monotonic()

    def dumped() -> None:
        if leave_running:
            # The files of this moment belong to the memory of this moment.
            _keep_upper(runtime, record, folder)

    try:
        dump.dump(
            runtime,
            record,
            plan,
            images=images,
            leave_running=leave_running,
            on_frozen=frozen,
            on_dumped=dumped,
        )
    except Exception:
        dump.release_network(record)
        raise
    finally:
        os.close(images)
    if leave_running:
        dump.release_network(record)
    return round((time.monotonic() - began) * 1000, 1)


def _keep_upper(runtime: Runtime, record: ContainerRecord, folder: Path) -> None:
    upper = os.open(runtime.folders.upper(record.id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(folder / UPPER_TAR, "wb") as tar:
            for chunk in pack_tree(upper, form=Form.UPPER):
                tar.write(chunk)
    finally:
        os.close(upper)


def delete_checkpoint(grant: Grant, runtime: Runtime, ref: str, *, name: str) -> None:
    """Remove a checkpoint and its images.  Raises: CheckpointNotFound."""
    record = runtime.find(grant, ref)
    with runtime.locked(record.id):
        runtime.store.get_checkpoint(record.id, name)
        runtime.store.delete_checkpoint(record.id, name)
        remove_tree(runtime.folders.checkpoint(record.id, name))


def newest(runtime: Runtime, record: ContainerRecord) -> CheckpointRecord:
    """Return the newest checkpoint of a container.  Raises: CheckpointNotFound."""
    found = runtime.store.list_checkpoints(record.id)
    if not found:
        raise CheckpointNotFound(
            f"cannot restore `{record.name}`: it has no checkpoint",
            hint=f"insula checkpoint create {record.name}",
        )
    return max(found, key=lambda each: each.created_at)

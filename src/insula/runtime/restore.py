# SPDX-License-Identifier: Apache-2.0
"""Restore: make a stopped container run again from a checkpoint, where it was."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from insula.image.tarball import Form, unpack_tree
from insula.model import span
from insula.model.errors import BadRequest, CheckpointAltered, DiskFull
from insula.model.grant import Grant
from insula.model.lifecycle import Event, after
from insula.model.permit import Permit
from insula.model.record import CheckpointRecord, ContainerRecord
from insula.model.spec import RestoreWish
from insula.runtime import binds, dump, own_disk, quotas
from insula.runtime.checkpoint import UPPER_TAR, Reporter, Result, newest, opened, secret_for
from insula.runtime.context import Runtime
from insula.runtime.fault import Note, fault
from insula.runtime.plan import start_plan
from insula.runtime.seal import Sealed, Stream, open_seal
from insula.runtime.start import bring_up_network
from insula.runtime.trees import remove_tree


def restore(grant: Grant, runtime: Runtime, ref: str, *, wish: RestoreWish, reporter: Reporter) -> Result:
    """Restore a container from one of its checkpoints; without a name from the newest.

    Nothing of it is used before it was found unaltered; what was encrypted is decrypted into memory.
    Raises: WrongState, CheckpointNotFound, CheckpointAltered, BadRequest, RestoreFailed naming the resource and the cure.
    """
    found = runtime.find(grant, ref)
    name = wish.checkpoint
    with runtime.locked(found.id), ExitStack() as undo:
        record = runtime.store.get_container(found.id)
        span.note(span.about(record))
        status = after(record.status, Event.RESTORE, name=record.name)
        permit = binds.permitted_now(runtime, record)
        chosen = runtime.store.get_checkpoint(record.id, name) if name else newest(runtime, record)
        folder = runtime.folders.checkpoint(record.id, chosen.name)
        own_disk.make_ready(runtime.folders.container(record.id), record.spec)
        began = time.monotonic()
        end_put_back(runtime, record, has_come_through=True)  # of an earlier restore
        runtime.store.update_container(replace(record, status=status))
        undo.callback(runtime.store.update_container, record)
        reporter.phase("restore")
        with _unsealed(runtime, chosen, folder, key=wish.key) as ready:
            if ready.sealed.has(UPPER_TAR):
                put_back_upper(runtime, record, ready.sealed.read(UPPER_TAR), undo=undo)
            held = replace(record, profile=chosen.profile)
            prepared = bring_up_network(runtime, held, undo=undo)
            pid = restore_into(runtime, prepared, ready.images, permit=permit, undo=undo)
        undo.pop_all()
        fault(Note.RESTORE)
        running = replace(
            prepared, status=after(status, Event.RESTORED), pid=pid, started_at=time.time(), exit_code=None,
            finished_at=0.0, error="", stopped_by_user=False,
        )  # fmt: skip
        runtime.store.update_container(running)
        end_put_back(runtime, record, has_come_through=True)
    return {"checkpoint": chosen.name, "restored_ms": round((time.monotonic() - began) * 1000, 1)}


class _Ready(NamedTuple):
    sealed: Sealed
    images: int


@contextmanager
def _unsealed(runtime: Runtime, chosen: CheckpointRecord, folder: Path, *, key: str) -> Iterator[_Ready]:
    """Check a checkpoint against its seal.  Yields: it, and a folder of its images in clear."""
    if chosen.key == "file" and not key:
        raise BadRequest(
            f"cannot use checkpoint `{chosen.name}`: it was sealed with a key file",
            hint="name the file: --key-file FILE",
        )
    secret = secret_for(runtime, key if chosen.key == "file" else "")
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(opened(folder))
        except OSError as error:
            raise CheckpointAltered(
                f"cannot use checkpoint `{chosen.name}`: its folder cannot be opened: {error.strerror}"
            ) from error
        sealed = open_seal(
            descriptor, secret=secret, container=chosen.container, checkpoint=chosen.name, code=chosen.seal
        )
        sealed.verify_files()
        if sealed.is_encrypted:
            images = held.enter_context(dump.memory_folder())
            sealed.unpack(images, without=frozenset((UPPER_TAR,)))
            yield _Ready(sealed, images)
        else:
            yield _Ready(sealed, descriptor)


def restore_into(
    runtime: Runtime, record: ContainerRecord, images: int, *, permit: Permit, undo: ExitStack
) -> int:
    """Prepare the room and restore into it.  Returns: the pid."""
    quotas.ready_group(runtime, record.tenant)
    with binds.opened(record, start_plan(runtime, record), permit=permit) as plan:
        runtime.spawner.prepare(plan)
        undo.callback(runtime.spawner.discard, record.id)
        runtime.before_start(record)
        return dump.restore(runtime, record, plan, images=images)


def put_back_upper(
    runtime: Runtime, record: ContainerRecord, tar: Iterator[bytes], *, undo: ExitStack
) -> None:
    """Replace the writable layer by the one that was kept with a checkpoint; the one before waits for the outcome."""
    upper = runtime.folders.upper(record.id)
    fresh, old = upper.with_name("upper.new"), _old_upper(upper)
    remove_tree(fresh)
    with ExitStack() as unless_whole:
        unless_whole.callback(remove_tree, fresh)
        try:
            _unpack(tar, fresh)
        except DiskFull as error:
            raise DiskFull(
                f"cannot restore `{record.name}`: its disk has no room for the files of then beside those of now",
                hint=f"start it and remove files there: insula start {record.name}"
                if record.spec.disk_bytes is not None
                else error.hint,
            ) from error
        unless_whole.pop_all()
    undo.callback(end_put_back, runtime, record, has_come_through=False)
    upper.rename(old)
    fresh.rename(upper)


def _unpack(tar: Iterator[bytes], folder: Path) -> None:
    """Raises: DiskFull, InvalidImage, CheckpointAltered."""
    folder.mkdir(mode=0o755)
    with opened(folder) as descriptor:
        unpack_tree(Stream(tar), descriptor, form=Form.UPPER)
        for _rest in tar:  # its last piece proves that nothing was cut off
            pass


def end_put_back(runtime: Runtime, record: ContainerRecord, *, has_come_through: bool) -> None:
    """Remove the writable layer that waits for the outcome of a restore, or take it back; none may wait."""
    upper = runtime.folders.upper(record.id)
    old = _old_upper(upper)
    if has_come_through:
        remove_tree(old)
    elif old.exists():
        remove_tree(upper)
        old.rename(upper)


def _old_upper(upper: Path) -> Path:
    return upper.with_name("upper.old")

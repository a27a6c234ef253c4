# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: write the state of a running container to disk, and end it, or let it run on."""

import base64
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from insula.image.pack import pack_tree
from insula.image.tarball import Form
from insula.model import span
from insula.model.errors import BadRequest, CheckpointNotFound, InvalidSpec, NameTaken
from insula.model.grant import Grant
from insula.model.lifecycle import Event, after
from insula.model.record import CheckpointRecord, ContainerRecord
from insula.model.spec import CheckpointWish
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.obstacles import refuse_obstacles
from insula.runtime.plan import start_plan
from insula.runtime.seal import Protection, Sealer, Secret, secret_of_file, secret_of_host
from insula.runtime.trees import remove_tree
from insula.runtime.undo import attempt

MAX_NAME = 63
NAME = re.compile(rf"[a-zA-Z0-9][a-zA-Z0-9_.-]{{0,{MAX_NAME - 1}}}")
UPPER_TAR = "upper.tar"

Result = dict[str, str | int | float | bool]


class Reporter(Protocol):
    """How a long action tells how far it is."""

    def check(self) -> None: ...
    def phase(self, name: str) -> None: ...


def checkpoint(
    grant: Grant, runtime: Runtime, ref: str, *, wish: CheckpointWish, reporter: Reporter
) -> Result:
    """Write a checkpoint, sealed; encrypted, if wished.  On failure the container runs on.

    Raises: WrongState, NameTaken, InvalidSpec, BadRequest, CheckpointFailed naming the resource and the cure.
    """
    found = runtime.find(grant, ref)
    secret = secret_for(runtime, wish.key)
    name = wish.name or _fresh_name({each.name for each in runtime.store.list_checkpoints(found.id)})
    if not NAME.fullmatch(name):
        raise InvalidSpec(
            f"cannot name a checkpoint `{name[:80]}`", hint="letters, digits, `_`, `.`, `-`, at most 63"
        )
    program = runtime.need_criu()
    with runtime.locked(found.id), ExitStack() as undo:
        record = runtime.store.get_container(found.id)
        span.note(span.about(record))
        status = after(record.status, Event.CHECKPOINT, name=record.name)
        refuse_obstacles(record.name, runtime.group(record).pids(), init=record.pid, verb="checkpoint")
        folder = _make_folder(runtime, record, name)
        undo.callback(remove_tree, folder)
        runtime.store.update_container(replace(record, status=status))
        undo.callback(runtime.store.update_container, record)
        protection = Protection.ENCRYPTED if wish.encrypt else Protection.AUTHENTICATED
        reporter.phase("freeze")
        with opened(folder) as descriptor:
            sealer = Sealer(
                descriptor, secret=secret, container=record.id, checkpoint=name, protection=protection
            )
            dumped = _dump(runtime, record, sealer, folder=descriptor, leave_running=wish.leave_running)
        made = CheckpointRecord(
            name=name,
            container=record.id,
            tenant=record.tenant,
            created_at=time.time(),
            size_bytes=sum(each.stat().st_size for each in folder.iterdir()),
            criu_version=program.version,
            kernel_release=os.uname().release,
            encrypted=wish.encrypt,
            key="file" if wish.key else "host",
            seal=dumped.seal,
            profile=record.profile,
        )
        runtime.store.save_checkpoint(made)
        undo.pop_all()
        if wish.leave_running:
            runtime.store.update_container(record)
    return {"checkpoint": name, "size_bytes": made.size_bytes, "frozen_ms": dumped.frozen_ms}


def secret_for(runtime: Runtime, key: str) -> Secret:
    """Return what a checkpoint is sealed with: a key file's content in base64, or this host's key.  Raises: BadRequest."""
    if not key:
        return secret_of_host(runtime.folders.state / "pki")
    try:
        data = base64.b64decode(key, validate=True)
    except ValueError as error:
        raise BadRequest("cannot use the key: it is not base64") from error
    return secret_of_file(data)


def _fresh_name(taken: set[str]) -> str:
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    numbered = (f"{now}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (now, *numbered) if name not in taken)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Give a descriptor of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_folder(runtime: Runtime, record: ContainerRecord, name: str) -> Path:
    folder = runtime.folders.checkpoint(record.id, name)
    if any(each.name == name for each in runtime.store.list_checkpoints(record.id)):
        raise NameTaken(f"cannot checkpoint `{record.name}` as `{name}`: it has one of that name")
    remove_tree(folder)  # what a killed insulad left half-written
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    # CRIU reopens it from within the user namespace; the folders above it are root's alone.
    folder.mkdir(mode=0o755)
    return folder


class _Dumped(NamedTuple):
    frozen_ms: float
    seal: str


def _dump(
    runtime: Runtime, record: ContainerRecord, sealer: Sealer, *, folder: int, leave_running: bool
) -> _Dumped:
    """Dump into the folder, or into memory if it is to be encrypted, and seal; before the processes end, if they do."""
    began, seal = 0.0, ""
    plan = start_plan(runtime, record)

    def frozen() -> None:
        nonlocal began
        began = time.monotonic()

    def finish() -> str:
        # As a restore here will want it, so that it has nothing to write into a sealed file.
        dump.rewrite_user_namespaces(images, uid_base=record.uid_base)
        sealer.add_folder(images)
        return sealer.finish()

    def dumped() -> None:
        nonlocal seal
        if leave_running:
            # The files of this moment belong to the memory of this moment.
            with opened(runtime.folders.upper(record.id)) as upper:
                sealer.add(UPPER_TAR, pack_tree(upper, form=Form.UPPER))
        else:
            seal = finish()

    with ExitStack() as held:
        images = held.enter_context(dump.memory_folder()) if sealer.is_encrypting else folder
        with ExitStack() as undo:
            undo.callback(attempt, dump.release_network, record)
            dump.dump(
                runtime, record, plan, images=images, leave_running=leave_running,
                stages=dump.DumpStages(frozen=frozen, dumped=dumped),
            )  # fmt: skip
            undo.pop_all()
        if leave_running:
            dump.release_network(record)
        frozen_ms = round((time.monotonic() - began) * 1000, 1)
        return _Dumped(frozen_ms, seal or finish())


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

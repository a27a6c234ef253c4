# SPDX-License-Identifier: Apache-2.0
"""Drive CRIU: dump a running container, restore one into a room, and say in people's words what CRIU could not do.

Checkpoint, restore and migration all pass here; what differs between them is where the images lie and what is decided
at the stages `post-dump` and `post-restore`, at which CRIU waits for us.
"""

import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

import msgspec

from insula.boot import root_parts
from insula.boot.engine import FIRST_INHERITED_FD, IMAGES_FD, ROOT, RPC_FD
from insula.boot.protocol import StartPlan
from insula.kernel import criu, mount, netlink, protobuf, tcp_repair
from insula.model.errors import CheckpointBusy, CheckpointFailed, InsulaError, RestoreFailed
from insula.model.record import ContainerRecord, Fact
from insula.runtime import lazy
from insula.runtime.compare_place import held_to
from insula.runtime.conntrack import SparedWalk
from insula.runtime.context import Runtime
from insula.runtime.obstacles import watched_folders
from insula.runtime.stall import LOOK_SECONDS, Stall

LOG = logging.getLogger(__name__)

REPAIR_SECONDS = 2.0
FILLED_SECONDS = 60.0
"""As long is waited before a dump for memory that is still being filled."""

STATE_FILE = "insula.json"
IMAGE_MODE = 0o644
"""CRIU reopens its images as the container's root; who may come near them is decided by the folder."""
DUMP_LOG = "criu-dump.log"
RESTORE_LOG = "criu-restore.log"
INVENTORY, INVENTORY_KEPT = "inventory.img", "inventory.kept"
"""The image that CRIU reads first, and its name while CRIU waits for it (`ask_ahead`)."""
_USERNS_MAGIC = struct.pack(
    "<II", 0x54564319, 0x55474906
)  # IMG_COMMON_MAGIC, USERNS_MAGIC of criu/include/magic.h
_IMAGES = f"/proc/self/fd/{IMAGES_FD}"


STATE_VERSION = 2
"""2: what a tmpfs held is packed, not compressed."""


class DumpState(Fact, kw_only=True, frozen=True):
    """What a restore must know beside CRIU's images."""

    version: int = STATE_VERSION
    stdio: tuple[str, ...] = ()
    """What standard input, output and error of pid 1 were: `pipe:[4711]`, `/dev/pts/0`, `/dev/null`."""


Stage = Callable[[], None]


def _nothing() -> None:
    return


def _nothing_of(_pid: int) -> None:
    return


def external_mounts(plan: StartPlan, pid: int) -> dict[str, str]:
    """Return the mounts that are not CRIU's business: name → place in the container, whose pid 1 is `pid`."""
    found = {"dev": "/dev"}
    for number, each in enumerate(plan.mounts):
        if each.kind == "bind":
            found[f"mount{number}"] = "/" + each.target.strip("/")
    found.update({root_parts.name(place): place for place in mount.parts_of_root(pid)})
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpStages:
    """What is called on the way of a dump; what one raises makes the processes run on, connections intact."""

    stopped: Stage = _nothing
    """Every process has stopped; the network is still there."""
    frozen: Stage = _nothing
    """Nothing reaches them any more, either."""
    dumped: Stage = _nothing
    """All is written, and they still stand."""


def dump(
    runtime: Runtime,
    record: ContainerRecord,
    plan: StartPlan,
    *,
    images: int,
    leave_running: bool,
    stages: DumpStages,
    is_lazy: bool = False,
    page_maps: int = -1,
) -> None:
    """Dump a running container into the folder behind a descriptor.

    is_lazy: leave private anonymous memory out; the images tell which pages are missing (`lazy.py`).
    page_maps: what CRIU sees instead of the kernel's (`hidden.py`).
    Raises: CheckpointFailed naming resource and cure, CheckpointBusy if it may pass; what the stages raise.
    """
    runtime.need_criu()
    lazy.wait_filled(runtime, record, seconds=FILLED_SECONDS)
    state = DumpState(stdio=stdio_of(record.pid))
    is_dumped = False

    def handle(stage: criu.Notification) -> bool:
        nonlocal is_dumped
        if stage.stage == "network-lock":
            stages.stopped()
            hold_network(record)
            stages.frozen()
            walk.begin(engine.pid, first=record.pid, images=images)
        elif stage.stage == "post-dump":
            is_dumped = True
            write_file(images, STATE_FILE, msgspec.json.encode(state))
            stages.dumped()
        elif stage.stage == "network-unlock" and not is_dumped:
            release_network(record)  # CRIU gives up: they are about to run, and to be heard
        return True

    options = _dump_options(runtime, record, plan, leave_running=leave_running, is_lazy=is_lazy)
    with ExitStack() as held:
        extra = lazy.dump_descriptors(held) if is_lazy else ()
        walk = held.enter_context(SparedWalk())
        engine = launch_engine(runtime, held, images=images, extra=extra, page_maps=page_maps)
        try:
            response = criu.request(engine.rpc, criu.DUMP, options, handle=handle)
        except criu.CriuGone as error:
            repair(runtime, record)
            raise CheckpointFailed(
                f"cannot checkpoint `{record.name}`: CRIU ended without an answer"
            ) from error
        if not response.success:
            failure = _failure(CheckpointFailed, "checkpoint", record=record, images=images, log=DUMP_LOG)
            walk.blame(failure)
            raise failure


def _dump_options(
    runtime: Runtime, record: ContainerRecord, plan: StartPlan, *, leave_running: bool, is_lazy: bool
) -> criu.Options:
    return criu.Options(
        images_dir=_IMAGES,
        pid=record.pid,
        log_file=DUMP_LOG,
        leave_running=leave_running,
        external=tuple(f"mnt[{place}]:{name}" for name, place in external_mounts(plan, record.pid).items()),
        irmap_scan_paths=watched_folders(runtime.group(record).pids(), init=record.pid),
        lazy_pages=is_lazy,
        config_file=lazy.CONFIG_FILE if is_lazy else "",
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """A CRIU that waits.  places: where it finds the external mounts, beside a room."""

    rpc: socket.socket
    pid: int
    places: Mapping[str, str]
    asked: criu.Options | None = None
    """For what it was asked already (`ask_ahead`)."""
    gate: BinaryIO | None = None
    """Where it waits for its first image then."""


def launch_engine(
    runtime: Runtime,
    held: ExitStack,
    *,
    images: int,
    extra: tuple[int, ...] = (),
    page_maps: int = -1,
    restore: StartPlan | None = None,
) -> Engine:
    """Start a CRIU; of a restore, ahead of it: the images may come later.  It ends with `held`.

    extra: descriptors that it inherits.  page_maps: as for `dump`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held.callback(ours.close)
    argv = (*runtime.need_criu().argv, "swrk", str(RPC_FD))
    with theirs:
        launched = runtime.spawner.launch_criu(
            argv, rpc=theirs.fileno(), images=images, extra=extra, page_maps=page_maps, restore=restore
        )
    return Engine(ours, launched.pid, launched.external)


def ask_ahead(
    runtime: Runtime, held: ExitStack, *, images: int, plan: StartPlan, stdio: tuple[str, ...]
) -> Engine:
    """Start the CRIU of a lazy restore and ask it, before there are images: it learns what it must of this host (8 ms).

    The first image that it reads is a pipe of ours until then; one that was received is to be called `INVENTORY_KEPT`.
    """
    reading, writing = os.pipe()
    gate = held.enter_context(os.fdopen(writing, "wb"))
    try:
        engine = launch_engine(runtime, held, images=images, extra=(reading,), restore=plan)
    finally:
        os.close(reading)
    os.symlink(f"/proc/self/fd/{FIRST_INHERITED_FD}", INVENTORY, dir_fd=images)
    asked = _restore_options(DumpState(stdio=stdio), engine.places, is_lazy=True, extra=1)
    criu.ask(engine.rpc, criu.RESTORE, asked)
    return replace(engine, asked=asked, gate=gate)


def _let_begin(engine: Engine, wanted: criu.Options, *, images: int) -> bool:
    """Give an engine that was asked ahead its first image.  Returns: False if it was asked for something else."""
    if engine.gate is None:
        return False
    if engine.asked == wanted:
        with contextlib.suppress(BrokenPipeError), engine.gate:  # it will say why
            engine.gate.write(read_file(images, INVENTORY_KEPT))
        return True
    engine.gate.close()
    engine.rpc.close()
    os.unlink(INVENTORY, dir_fd=images)
    os.rename(INVENTORY_KEPT, INVENTORY, src_dir_fd=images, dst_dir_fd=images)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStages:
    """What is called on the way of a restore."""

    waiting: Stage = _nothing
    """CRIU is at work; what it raises gives the restore up."""
    restored: Stage = _nothing
    """Everything is as it was and stands still; what it raises undoes the restore."""
    unlock: Stage = _nothing
    """Its port is about to join the bridge again; what it raises undoes the restore, too, unheard."""
    resume: Callable[[int], None] = _nothing_of
    """The sockets are about to speak and the processes to run; with the pid of pid 1."""
    running: Stage = _nothing
    """They run."""


def restore(
    runtime: Runtime,
    record: ContainerRecord,
    plan: StartPlan,
    *,
    images: int,
    engine: Engine | None = None,
    stages: RestoreStages | None = None,
    memory: lazy.Memory | None = None,
) -> int:
    """Restore a container whose cgroups and pipes are prepared (`SpawnerClient.prepare`).

    engine: a CRIU that was launched ahead.
    memory: what a lazy dump left out; it is brought while the program runs.
    Returns: the pid of its pid 1.  Raises: RestoreFailed; what the stages raise.
    """
    state = read_state(images)
    rewrite_user_namespaces(images, uid_base=record.uid_base)
    terminal, first = -1, 0
    stages = stages or RestoreStages()
    filled = lazy.Restore(runtime, record, images=images, memory=memory)

    def handle(stage: criu.Notification) -> bool:
        nonlocal terminal, first
        match stage.stage:
            case "setup-namespaces":
                filled.permit()
                first = stage.pid
                runtime.spawner.plug(record.id, stage.pid)
            case "orphan-pts-master" if stage.descriptors:
                terminal = stage.descriptors[0]
                held.callback(os.close, terminal)
            case "post-restore":
                filled.check()
                stages.restored()
            case "network-unlock":
                stages.unlock()
                release_network(record)
                stages.resume(first)
            case "post-resume":
                stages.running()
        return True

    with ExitStack() as held:
        is_early = engine is not None and engine.gate is not None
        held.enter_context(held_to(plan, images, inventory=INVENTORY_KEPT if is_early else INVENTORY))
        held.enter_context(filled)
        stall = Stall(runtime.group(record), name=record.name)
        ask = _Ask(images=images, state=state, is_lazy=memory is not None)
        engine = ask.begin(runtime, held, plan=plan, ahead=engine)
        response = _follow_restore(engine, handle=handle, stall=stall, waiting=stages.waiting)
        if not response.success:
            stall.blame_memory()
            raise _failure(RestoreFailed, "restore", record=record, images=images, log=RESTORE_LOG)
        runtime.spawner.adopt(record.id, response.pid, terminal=terminal)
    return response.pid


class _Ask(NamedTuple):
    """What CRIU is asked to restore."""

    images: int
    state: DumpState
    is_lazy: bool

    def begin(self, runtime: Runtime, held: ExitStack, *, plan: StartPlan, ahead: Engine | None) -> Engine:
        """Have a CRIU begin: the one that was launched ahead, if it takes this, else a new one."""
        if ahead is not None:
            options = _restore_options(self.state, ahead.places, is_lazy=self.is_lazy, extra=1)
            if _let_begin(ahead, options, images=self.images):
                return ahead
        engine = launch_engine(runtime, held, images=self.images, restore=plan)
        criu.ask(engine.rpc, criu.RESTORE, _restore_options(self.state, engine.places, is_lazy=self.is_lazy))
        return engine


def _follow_restore(engine: Engine, *, handle: criu.Handler, stall: Stall, waiting: Stage) -> criu.Response:
    def look() -> None:
        stall.look()
        waiting()

    def answer(stage: criu.Notification) -> bool:
        try:
            return handle(stage)
        finally:
            stall.begin_anew()

    engine.rpc.settimeout(LOOK_SECONDS)
    try:
        return criu.follow(engine.rpc, handle=answer, on_silence=look)
    except criu.CriuGone as error:
        stall.blame_memory()
        raise RestoreFailed(f"cannot restore `{stall.name}`: CRIU ended without an answer") from error


def _restore_options(
    state: DumpState, places: Mapping[str, str], *, is_lazy: bool, extra: int = 0
) -> criu.Options:
    return criu.Options(
        images_dir=_IMAGES,
        log_file=RESTORE_LOG,
        root=ROOT,
        external=tuple(f"mnt[{name}]:{path}" for name, path in places.items()),
        inherit_fd=inherited_pipes(state, extra=extra),
        rst_sibling=True,
        lazy_pages=is_lazy,
    )


def repair(runtime: Runtime, record: ContainerRecord) -> None:
    """Undo what a CRIU that was killed in mid-dump left: sockets in repair.  Its network must still be held."""
    group = runtime.group(record)
    was_frozen = group.is_frozen()
    group.freeze()
    try:
        with contextlib.suppress(TimeoutError):
            group.wait_frozen(time.monotonic() + REPAIR_SECONDS)
        count = sum(_repair_process(pid) for pid in group.pids())
    finally:
        if not was_frozen:
            group.thaw()
    if count:
        LOG.warning(
            "sockets taken out of repair", extra={"fields": {"container": record.id[:12], "count": count}}
        )


def _repair_process(pid: int) -> int:
    try:
        return tcp_repair.end_repair(pid)
    except OSError as error:
        LOG.warning("a process was not repaired", extra={"fields": {"pid": pid, "reason": str(error)}})
        return 0


def inherited_pipes(state: DumpState, *, extra: int = 0) -> tuple[tuple[str, int], ...]:
    """Return which dumped pipe becomes which of the room's: standard input, output, error, in this order.

    extra: descriptors that CRIU inherits before these.
    """
    found: dict[str, int] = {}
    for number, link in enumerate(state.stdio):
        if link.startswith("pipe:["):
            found.setdefault(link, FIRST_INHERITED_FD + extra + number)
    return tuple(found.items())


def stdio_of(pid: int) -> tuple[str, ...]:
    """Return what the standard streams of a process are."""
    links = []
    for number in range(3):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            links.append("")
    return tuple(links)


def hold_network(record: ContainerRecord) -> None:
    """Take the container's port off its bridge: nothing reaches its sockets any more, and nothing is refused."""
    if record.attachment is not None:
        with netlink.Route() as route:
            route.set_master(record.attachment.interface, None)


def release_network(record: ContainerRecord) -> None:
    """Make the container's interface a port of its bridge (again)."""
    if record.attachment is not None:
        with netlink.Route() as route:
            route.set_master(record.attachment.interface, record.attachment.bridge)


def rewrite_user_namespaces(images: int, *, uid_base: int) -> None:
    """Give the dumped user namespace this host's range of the tenant.

    All other images carry ids as the container sees them (CRIU's `userns_uid`), so the mapping is all that changes.
    """
    for name in os.listdir(images):
        if name.startswith("userns-") and name.endswith(".img"):
            extent = protobuf.encode([(1, 0), (2, uid_base), (3, 65536)])
            entry = protobuf.encode([(1, extent), (2, extent)])
            write_file(images, name, _USERNS_MAGIC + struct.pack("<I", len(entry)) + entry)


def read_state(images: int) -> DumpState:
    """Read what a dump has left for its restore.  Raises: RestoreFailed for another version's, or what is none."""
    try:
        state = msgspec.json.decode(read_file(images, STATE_FILE), type=DumpState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RestoreFailed(f"cannot read `{STATE_FILE}` of the checkpoint: {error}") from error
    if state.version != STATE_VERSION:
        raise RestoreFailed(
            f"cannot restore a dump of version {state.version}: this insula reads {STATE_VERSION}",
            hint="restore it with the insula that made it",
        )
    return state


def read_file(folder: int, name: str) -> bytes:
    """Read a small file of a folder of images.  Raises: RestoreFailed if it is not there."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise RestoreFailed(f"cannot read `{name}` of the checkpoint: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def write_file(folder: int, name: str, data: bytes) -> None:
    """Write a small file of a folder of images."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, IMAGE_MODE, dir_fd=folder), "wb") as file:
        file.write(data)


def _failure(
    kind: type[InsulaError], verb: str, *, record: ContainerRecord, images: int, log: str
) -> InsulaError:
    try:
        text = read_file(images, log).decode(errors="replace")
    except InsulaError:
        text = ""
    cause = criu.find_cause(text)
    LOG.warning("CRIU failed", extra={"fields": {"container": record.id[:12], "line": cause.line}})
    if cause.resource:
        kind = CheckpointBusy if kind is CheckpointFailed and cause.passes else kind
        return kind(
            f"cannot {verb} `{record.name}`: it has {cause.resource}", hint=cause.cure, line=cause.line
        )
    return kind(f"cannot {verb} `{record.name}`: {cause.line or 'CRIU gave no reason'}")


@contextmanager
def memory_folder() -> Iterator[int]:
    """Give a folder in memory that nobody else can see, for images on their way.  Yields: its descriptor."""
    # 0755: CRIU reopens it from within the user namespace; there is no path to it.
    made = mount.tmpfs(mode=0o755, source="insula-images")
    try:
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=made)
        try:
            yield folder
        finally:
            os.close(folder)
    finally:
        os.close(made)

# SPDX-License-Identifier: Apache-2.0
"""CRIU as a child of the spawner, and the place into which it restores a container.

CRIU runs in its own session and mount namespace, with a tmpfs as /run, where the last one left what it learned of the kernel
(33 ms per run without it).  A restore happens in a room that is made ahead:

    prepare   cgroups and pipes, kept under a key
    launch    a CRIU process beside that room: root file system and external mounts attached below CRIU's /run, in the
              container's cgroups and cgroup namespace; the restored process becomes a child of the spawner (rst_sibling)
    plug      the network namespace that CRIU has just made gets its veth pair, not yet a port of the bridge
    adopt     the restored process is a container from now on
    discard   the room is torn down instead

Standard library only.
"""

import contextlib
import dataclasses
import fcntl
import os
from typing import Any, NoReturn

from insula.boot import birth, blind, build, child, packer, root_parts
from insula.boot.jobs import Container, Host, child_pids
from insula.boot.loop import Task
from insula.boot.protocol import StartPlan, decode
from insula.boot.stdio import make_pipes
from insula.kernel import keyring, libc, mount, namespace, netlink
from insula.kernel.cgroup import Doors, Group

#: Descriptors of a CRIU process: its RPC socket, the folder of images, then what is inherited, in order.
RPC_FD = 3
IMAGES_FD = 4
FIRST_INHERITED_FD = 5

#: Where a restore finds the root file system and the external mounts: in CRIU's own /run, because it looks for them as
#: the container's root, who cannot pass through folders of the host that are root's alone.
ROOT = "/run/root"
EXTERNAL = "/run/external"
TMP = "/tmp"


class Room:
    """All that stands ready for a container to be restored into."""

    def __init__(self, plan: StartPlan, *, group: Group) -> None:
        self.plan = plan
        self.group = group
        self.inner = (-1, -1, -1)
        self.outer = (-1, -1, -1)
        if not plan.program.tty:
            self.inner, self.outer = make_pipes(uid=plan.uid_base, with_stdin=True)
            for each in self.inner:
                # Whoever the program has become may open /dev/stdout again.  /proc/PID/fd is closed to all others.
                os.fchmod(each, 0o666)

    def close_inner(self) -> None:
        """Let go of what the restored processes hold by now."""
        for descriptor in self.inner:
            if descriptor >= 0:
                os.close(descriptor)
        self.inner = (-1, -1, -1)

    def close(self) -> None:
        self.close_inner()
        for descriptor in self.outer:
            if descriptor >= 0:
                os.close(descriptor)
        self.outer = (-1, -1, -1)


_rooms: dict[str, Room] = {}


def prepare(host: Host, plan: StartPlan) -> Task[None]:
    """Make the room for a restore.  Raises: BirthFailed."""
    yield from discard(host, plan.key)
    _rooms[plan.key] = Room(plan, group=birth.make_group(host, plan))


def plug(host: Host, key: str, *, pid: int) -> None:
    """Give the new network namespace of a process in restore its interface, not yet a port of the bridge.

    CRIU made the namespace empty, within the container's user namespace, so that it belongs to the container: sockets
    there can be repaired only by whom their namespace's owner allows (`tcp_can_repair_sock`).
    """
    del host
    plan = _rooms[key].plan
    if plan.network is not None:
        birth.create_veth(
            dataclasses.replace(plan, network=dataclasses.replace(plan.network, bridge="")), pid=pid
        )
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.namespace_entered(descriptor):
            child.configure_network(plan)
    finally:
        os.close(descriptor)


def launch(host: Host, body: dict[str, Any], descriptors: list[int]) -> birth.Answer:
    """Start a CRIU process.

    body: argv; key and `restore` (a StartPlan, for a restore into its room); `page_maps`: the last descriptor is a mount of
    page maps for a dump (`runtime/hidden.py`).  descriptors: its RPC socket, its folder of images, further ones.
    Answers: pid, and the mapping of external names to paths for a restore.
    """
    restore = "restore" in body
    plan = decode(StartPlan, body["restore"]) if restore else None
    room = _rooms[plan.key] if plan is not None else None
    inherited = list(descriptors)
    page_maps = inherited.pop() if body.get("page_maps") else -1
    if room is not None:
        inherited += [each for each in room.inner if each >= 0]
    host.renew_engine_run(blind=page_maps >= 0)
    external: dict[str, str] = {}
    with contextlib.ExitStack() as held:
        doors, prepared = Doors(-1, ()), None
        if plan is not None and room is not None:
            prepared = held.enter_context(contextlib.closing(build.prepare(plan, host.maps)))
            external = external_paths(plan, prepared.root)
            doors = held.enter_context(contextlib.closing(room.group.open_doors()))
        born = namespace.spawn(0, cgroup_fd=doors.v2)
        if born.pid == 0:
            _become_criu(
                host,
                body["argv"],
                plan=plan,
                doors=doors,
                prepared=prepared,
                inherited=inherited,
                page_maps=page_maps,
            )
    host.watch_engine(born)
    return {"pid": born.pid, "external": external}, []


def group_of(key: str) -> Group | None:
    """Return the cgroups of a room; None if there is none."""
    room = _rooms.get(key)
    return room.group if room is not None else None


def external_paths(plan: StartPlan, root: int) -> dict[str, str]:
    """Return where each external mount of a container waits for a restore: its name → path in CRIU's view."""
    places = {"dev": f"{EXTERNAL}/dev"}
    for number, each in enumerate(plan.mounts):
        if each.kind == "bind":
            places[f"mount{number}"] = f"{EXTERNAL}/mount{number}"
    for number, part in enumerate(root_parts.find(root, plan.root)):
        places[root_parts.name(part.path)] = f"{EXTERNAL}/part{number}"
    return places


def _become_criu(
    host: Host,
    argv: list[str],
    *,
    plan: StartPlan | None,
    doors: Doors,
    prepared: build.Prepared | None,
    inherited: list[int],
    page_maps: int,
) -> NoReturn:
    step = "criu"
    try:
        os.setsid()
        keyring.join_new_session()  # what is restored inherits it
        child.reset_signals()
        libc.unshare(namespace.CLONE_NEWNS)
        mount.set_propagation("/", propagation=mount.MS_PRIVATE)
        mount.attach(host.engine_run, "/run")
        packer.place()
        if plan is not None and prepared is not None:
            _stage(plan, prepared)
            _cover_tmp(argv)
            doors.enter()
            libc.unshare(namespace.CLONE_NEWCGROUP)
        if page_maps >= 0:
            blind.cover_page_maps(page_maps, argv=argv)
        _place_descriptors(inherited)
        os.chdir("/")
        os.execve(argv[0], argv, {"PATH": packer.PATH, "LANG": "C"})
    except BaseException as error:  # noqa: BLE001  the spawner's log is all that is left
        os.write(2, f"spawner: {step}: {error!r}\n".encode())
    os._exit(127)


def _stage(plan: StartPlan, prepared: build.Prepared) -> None:
    os.makedirs(ROOT, exist_ok=True)
    mount.attach(prepared.root, ROOT)
    outside = EXTERNAL
    os.makedirs(outside, exist_ok=True)
    shelf = mount.tmpfs(mode=0o755)
    mount.attach(shelf, outside)
    os.close(shelf)
    _attach_made(f"{outside}/dev", prepared.devices)
    for number, (each, descriptor) in enumerate(zip(plan.mounts, prepared.mounts, strict=True)):
        if each.kind == "bind":
            _attach_made(f"{outside}/mount{number}", descriptor)
    for number, part in enumerate(root_parts.find(prepared.root, plan.root)):
        place, made = root_parts.open_part(prepared.root, part)
        os.close(place)
        _attach_made(f"{outside}/part{number}", made)


def _cover_tmp(argv: list[str]) -> None:
    """Give a restore a `/tmp` of its own: one that is killed, or fails, leaves the folder in which it builds (`/tmp/.criu.mntns.…`).

    Not if CRIU itself stands there, as one of a developer may.  Source: CRIU's mount.c, `create_mnt_roots`.
    """
    if any(word.startswith(f"{TMP}/") for word in argv):
        return
    own = mount.tmpfs(mode=0o1777)
    mount.attach(own, TMP)
    os.close(own)


def _attach_made(place: str, made: int) -> None:
    if os.path.isdir(f"/proc/self/fd/{made}"):
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    mount.attach(made, place)
    os.close(made)


def _place_descriptors(inherited: list[int]) -> None:
    # First out of the way of the targets, then to the targets.
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, RPC_FD + len(inherited)) for each in inherited]
    os.dup2(null, 0, inheritable=True)
    os.dup2(null, 1, inheritable=True)
    for number, each in enumerate(high):
        os.dup2(each, RPC_FD + number, inheritable=True)
    libc.close_range(RPC_FD + len(high), 0xFFFFFFFF, 0)


def adopt(host: Host, key: str, *, pid: int, terminal: int = -1) -> Container:
    """Take a restored process, our child already, as the container of a room.

    pid: 0 for whatever stands there, when the insulad that had it restored died before it could say so.
    Raises: KeyError if there is no such room; ProcessLookupError if the process has ended, or there is none.
    """
    pid = pid or _restored_in(_rooms[key])
    pidfd = os.pidfd_open(pid)
    room = _rooms.pop(key)
    room.close_inner()
    plan = room.plan
    stdio = birth.connect_stdio(
        host, plan.program, outer=room.outer, terminal=terminal, log=birth.open_log(plan), pidfd=pidfd
    )
    container = Container(key, pid=pid, pidfd=pidfd, stdio=stdio, group=room.group, uid_base=plan.uid_base)
    host.add(container)
    return container


def _restored_in(room: Room) -> int:
    found = child_pids().intersection(room.group.pids())
    if len(found) != 1:
        raise ProcessLookupError(3, f"adopt: {len(found)} processes stand in the room")
    return found.pop()


def discard(host: Host, key: str) -> Task[None]:
    """Tear a room down.  Does nothing where there is none."""
    room = _rooms.pop(key, None)
    if room is None:
        return
    room.close()
    with contextlib.suppress(OSError):
        room.group.kill()
    yield from host.delete_group(room.group)
    host.reap_strays()

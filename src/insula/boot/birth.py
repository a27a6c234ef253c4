# SPDX-License-Identifier: Apache-2.0
"""The spawner's side of a start and of an exec: clone, map, join cgroups, plug in the network, wait for the exec.

    cgroups, mounts ─► clone3 into them ─► map ids ─► "go" ─► veth ─► "net" ─► end of file: the program runs
                        └── child.py ──────────────────┘─────────────────┘

A failure on either side undoes what was made and becomes a `BirthFailed` that names the step.  Every wait for a child
is a task's (`loop.py`): a container that stalls holds up nobody but who asked for it.  Standard library only.
"""

import contextlib
import errno
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from insula.boot import build, child, protocol
from insula.boot.jobs import Container, Host, Job
from insula.boot.loop import Task, Wait
from insula.boot.protocol import Failure, LimitsPlan, Message, ProgramPlan, StartPlan
from insula.boot.stdio import Log, Stdio, make_pipes
from insula.kernel import idmap, namespace, netlink, seccomp
from insula.kernel.cgroup import Device, Group, Limits
from insula.model import stream

#: What a verb of the spawner answers: fields and descriptors.
Answer = tuple[dict[str, object], list[int]]

#: A child that neither runs its program nor reports within this time is killed.
BIRTH_SECONDS = 30.0
ENTER_SECONDS = 2.0
"""The same for one that enters a container: whoever is root in there can stop it, and somebody waits for the answer."""


class BirthFailed(Exception):
    """A start or exec that did not come to its program."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@functools.cache
def filter_for(
    capabilities: tuple[str, ...], calls: tuple[str, ...] = (), *, is_logged: bool = False
) -> bytes:
    """Return the seccomp program for a set of capabilities, and a profile's calls (empty: all), built once."""
    profile = frozenset(calls) if calls else None
    return seccomp.build_filter(frozenset(capabilities), profile=profile, is_logged=is_logged)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" `{error.filename}`" if error.filename else ""
        failure = Failure(step=name, errno=error.errno or 0, message=f"{error.strerror}{where}")
        raise BirthFailed(failure) from error


def limits_of(plan: LimitsPlan) -> Limits:
    """Translate the plan's limits to the kernel's."""
    return Limits(
        memory_bytes=plan.memory_bytes,
        memory_swap_bytes=plan.memory_swap_bytes,
        cpu_quota_us=plan.cpu_quota_us,
        cpu_period_us=plan.cpu_period_us if plan.cpu_quota_us is not None else None,
        pids=plan.pids,
    )


def make_group(host: Host, plan: StartPlan) -> Group:
    """Make the container's cgroups with their limits."""
    group = Group(host.hierarchies, plan.cgroup_parent, plan.key)
    with _step("cgroup"):
        try:
            group.create()
            group.set_limits(limits_of(plan.limits))
            group.limit_devices(
                [Device(each.kind, each.major, each.minor, each.access) for each in plan.devices]
            )
        except ValueError as error:
            _delete_empty(group)
            raise OSError(errno.EINVAL, str(error)) from None
        except OSError:
            _delete_empty(group)
            raise
    return group


def _delete_empty(group: Group) -> None:
    with contextlib.suppress(OSError):
        group.delete(time.monotonic())


@dataclass(slots=True)
class _Made:
    """What has been made on the way of a birth, to be taken back if it fails."""

    group: Group | None = None
    connection: socket.socket | None = None
    theirs: socket.socket | None = None
    inner: tuple[int, ...] = ()
    outer: tuple[int, int, int] = (-1, -1, -1)
    terminal: int = -1
    stdio: Stdio | None = None
    child: namespace.Child | None = None
    entering: namespace.Child | None = None

    def connect(self, plan: ProgramPlan, *, uid: int) -> tuple[socket.socket, tuple[int, int, int]]:
        """Make the socket to the child and its streams.  Returns: the child's ends."""
        self.connection, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inner, self.outer = _make_stdio(plan, uid=uid)
        self.inner = inner
        return self.theirs, inner

    def let_go_of_childs(self) -> None:
        """Close the child's ends here."""
        if self.theirs is not None:
            self.theirs.close()
        _close_all(self.inner)
        self.inner = ()

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def undo(self, host: Host) -> Task[None]:
        """End the child and close everything; the cgroups last."""
        self.hang_up()
        self.let_go_of_childs()
        if self.stdio is not None:
            self.stdio.finish(b"")
        else:
            _close_all((*self.outer, self.terminal))
        for each in (self.entering, self.child):
            if each is not None:
                yield from host.end_child(each)
        if self.group is not None:
            yield from host.delete_group(self.group)


def start(host: Host, plan: StartPlan) -> Task[Container]:
    """Start a container.

    Raises: BirthFailed; nothing of it is left then.
    """
    with _step("clone"):
        host.refuse_living(plan.key)
    made = _Made()
    container = None
    try:
        made.group = make_group(host, plan)
        born = _clone(host, plan, made)
        _raise_child(plan, born=born, made=made)
        yield from _wait_for_program(made, seconds=BIRTH_SECONDS)
        made.hang_up()
        made.stdio = connect_stdio(
            host,
            plan.program,
            outer=made.outer,
            terminal=made.terminal,
            log=open_log(plan),
            pidfd=born.pidfd,
        )
        born_here = Container(
            plan.key,
            pid=born.pid,
            pidfd=born.pidfd,
            stdio=made.stdio,
            group=made.group,
            uid_base=plan.uid_base,
        )
        with _step("clone"):
            host.add(born_here)
        container = born_here
    finally:
        if container is None:
            yield from made.undo(host)
    return container


def _clone(host: Host, plan: StartPlan, made: _Made) -> namespace.Child:
    filter_program = filter_for(
        plan.program.capabilities, plan.program.calls, is_logged=plan.program.is_logged
    )
    if made.group is None:
        raise BirthFailed(Failure(step="cgroup", errno=0, message="no cgroup was made"))
    with _step("rootfs"):
        prepared = build.prepare(plan, host.maps)
    with contextlib.closing(prepared), _step("clone"), contextlib.closing(made.group.open_doors()) as doors:
        theirs, inner = made.connect(plan.program, uid=plan.uid_base)
        born = namespace.spawn(namespace.CONTAINER, cgroup_fd=doors.v2)
        if born.pid == 0:
            child.start(
                plan,
                prepared,
                doors=doors,
                connection=theirs,
                stage=host.stage,
                stdio=inner,
                filter_program=filter_program,
            )
        made.child = born
    made.let_go_of_childs()
    return born


def _raise_child(plan: StartPlan, *, born: namespace.Child, made: _Made) -> None:
    ranges = build.id_ranges(plan.uid_base)
    with _step("map ids"):
        idmap.write_maps(born.pid, uids=ranges, gids=ranges)
    _tell(made, child.GO)
    if plan.network is not None:
        with _step("network"):
            create_veth(plan, pid=born.pid)
    _tell(made, child.NET)


def _tell(made: _Made, word: bytes) -> None:
    # A child that has failed is gone; what it said is read by `_wait_for_program`.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if made.connection is not None:
            made.connection.send(word)


def create_veth(plan: StartPlan, *, pid: int | None = None, netns_fd: int | None = None) -> None:
    """Make the container's veth pair: one end a port of the bridge, the other eth0 in its namespace."""
    network = plan.network
    if network is None:
        return
    with netlink.Route() as route:
        with contextlib.suppress(OSError):  # left by a crash: the name is ours alone
            route.delete(network.interface)
        route.create_veth(
            network.interface,
            peer="eth0",
            peer_pid=pid,
            peer_netns_fd=netns_fd,
            master=network.bridge or None,
            peer_mac=network.mac,
        )


def _make_stdio(plan: ProgramPlan, *, uid: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    if plan.tty:
        return (-1, -1, -1), (-1, -1, -1)
    return make_pipes(uid=uid, with_stdin=plan.stdin_open)


def open_log(plan: StartPlan) -> Log | None:
    """Open a container's log."""
    return Log(plan.log, kept_bytes=plan.log_bytes) if plan.log else None


def connect_stdio(
    host: Host,
    plan: ProgramPlan,
    *,
    outer: tuple[int, int, int],
    terminal: int,
    log: Log | None,
    pidfd: int,
) -> Stdio:
    """Put the outer ends into the loop."""
    stdio = Stdio(
        host.loop,
        log=log,
        signal=lambda number: _signal_quietly(pidfd, number),
    )
    if plan.tty:
        stdio.set_terminal(terminal)
        return stdio
    if outer[0] >= 0:
        stdio.set_input(outer[0])
    stdio.add_output(outer[1], stream.STDOUT)
    stdio.add_output(outer[2], stream.STDERR)
    return stdio


def _signal_quietly(pidfd: int, number: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, number)


def _wait_for_program(made: _Made, *, seconds: float) -> Task[None]:
    """Wait until the child has become its program, whose terminal is kept."""
    deadline = time.monotonic() + seconds
    while True:
        fields, descriptors = yield from _receive(made, deadline)
        if not fields:
            return
        if fields.get("pty") and len(descriptors) == 1 and made.terminal < 0:
            made.terminal = descriptors[0]
            continue
        _close_all(tuple(descriptors))
        raise BirthFailed(_failure_of(fields))


def _failure_of(fields: dict[str, Any]) -> Failure:
    if "step" not in fields:
        return Failure(step="enter", errno=0, message="the entering process ended")
    code = fields.get("code", "")
    return Failure(step=fields["step"], errno=fields["errno"], message=fields["message"], code=code)


def _receive(made: _Made, deadline: float) -> Task[Message]:
    """Receive what a child says; an empty message is the end of its socket.  Raises: BirthFailed at the deadline."""
    if made.connection is None:
        return Message({}, [])
    if not (yield Wait(made.connection.fileno(), deadline)):
        raise BirthFailed(Failure(step="wait", errno=errno.ETIMEDOUT, message="the child did not answer"))
    for _ in range(2):
        # A child that ended without reading our last word leaves an error, which hides what it had said, once.
        with contextlib.suppress(ConnectionResetError):
            return protocol.receive(made.connection, size=65536)
    return Message({}, [])


def execute(host: Host, container: Container, plan: ProgramPlan, *, key: str) -> Task[Job]:
    """Run one more program in a container.

    Raises: BirthFailed.
    """
    if not container.alive:
        raise BirthFailed(
            Failure(step="enter", errno=3, message="the container has ended", code="wrong_state")
        )
    made = _Made()
    job = None
    try:
        _clone_entering(container, plan, made)
        _tell(made, child.GO)
        worker = yield from _receive_worker(host, made)
        _tell(made, child.KNOWN)
        yield from _wait_for_program(made, seconds=ENTER_SECONDS)
        made.hang_up()
        made.stdio = connect_stdio(
            host, plan, outer=made.outer, terminal=made.terminal, log=None, pidfd=worker.pidfd
        )
        job = Job(key, container=container.key, pid=worker.pid, pidfd=worker.pidfd, stdio=made.stdio)
        host.add(job)
    finally:
        if job is None:
            yield from made.undo(host)
            host.reap_strays_soon()
    return job


def _clone_entering(container: Container, plan: ProgramPlan, made: _Made) -> None:
    filter_program = filter_for(plan.capabilities, plan.calls, is_logged=plan.is_logged)
    with _step("clone"), contextlib.closing(container.group.open_doors()) as doors:
        theirs, inner = made.connect(plan, uid=container.uid_base)
        entering = namespace.spawn(0, cgroup_fd=doors.v2)
        if entering.pid == 0:
            child.execute(
                plan,
                doors=doors,
                pidfd=container.pidfd,
                connection=theirs,
                stdio=inner,
                filter_program=filter_program,
            )
        made.entering = entering
    made.let_go_of_childs()


def _receive_worker(host: Host, made: _Made) -> Task[namespace.Child]:
    fields, descriptors = yield from _receive(made, time.monotonic() + ENTER_SECONDS)
    _close_all(tuple(descriptors))
    if "worker" not in fields:
        raise BirthFailed(_failure_of(fields))
    with _step("enter"):
        made.child = namespace.Child(fields["worker"], os.pidfd_open(fields["worker"]))
    entering, made.entering = made.entering, None
    if entering is not None:
        yield from host.end_child(entering)  # it has said what it had to say
    return made.child


def view(host: Host, plan: StartPlan) -> int:
    """Mount the root file system of a stopped container, detached.  Returns: the mount's descriptor."""
    with _step("rootfs"):
        return build.prepare_root(plan, host.maps.descriptor(plan.uid_base))


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)

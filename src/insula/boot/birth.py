# SPDX-License-Identifier: Apache-2.0
"""The spawner's side of a start and of an exec: clone, map, join cgroups, plug in the network, wait for the exec.

    cgroups, mounts ─► clone3 into them ─► map ids ─► "go" ─► veth ─► "net" ─► end of file: the program runs
                        └── child.py ──────────────────┘─────────────────┘

A failure on either side undoes what was made and becomes a `BirthFailed` that names the step.  Standard library only.
"""

import contextlib
import errno
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator

from insula.boot import build, child, protocol
from insula.boot.jobs import Container, Host, Job
from insula.boot.protocol import Failure, LimitsPlan, Message, ProgramPlan, StartPlan
from insula.boot.stdio import Log, Stdio, make_pipes
from insula.kernel import idmap, namespace, netlink, seccomp
from insula.kernel.cgroup import Group, Limits
from insula.model import stream

#: What a verb of the spawner answers: fields and descriptors.
Answer = tuple[dict[str, object], list[int]]

#: A child that neither runs its program nor reports within this time is killed.
BIRTH_SECONDS = 30.0
ENTER_SECONDS = 2.0
"""The same for one that enters a container: whoever is root in there can stop it, and the spawner waits."""


class BirthFailed(Exception):
    """A start or exec that did not come to its program."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@functools.cache
def filter_for(capabilities: tuple[str, ...]) -> bytes:
    """Return the seccomp program for a set of capabilities, built once."""
    return seccomp.build_filter(frozenset(capabilities))


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
            group.deny_devices()
        except ValueError as error:
            _delete_group(group)
            raise OSError(errno.EINVAL, str(error)) from None
        except OSError:
            _delete_group(group)
            raise
    return group


def start(host: Host, plan: StartPlan) -> Container:
    """Start a container.

    Raises: BirthFailed; nothing of it is left then.
    """
    with _step("clone"):
        host.refuse_living(plan.key)
    filter_program = filter_for(plan.program.capabilities)
    with contextlib.ExitStack() as undo:
        group = make_group(host, plan)
        undo.callback(_delete_group, group)
        with _step("rootfs"):
            prepared = build.prepare(plan, host.maps)
        with contextlib.closing(prepared):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            inner, outer = _make_stdio(plan.program, uid=plan.uid_base)
            undo.callback(_close_all, outer)
            with _step("clone"), contextlib.closing(group.open_doors()) as doors:
                born = namespace.spawn(namespace.CONTAINER, cgroup_fd=doors.v2)
                if born.pid == 0:
                    ours.close()
                    child.start(
                        plan,
                        prepared,
                        doors=doors,
                        connection=theirs,
                        stage=host.stage,
                        stdio=inner,
                        filter_program=filter_program,
                    )
        undo.callback(reap, born)
        theirs.close()
        _close_all(inner)
        _raise_child(plan, born=born, connection=ours)
        terminal = _wait_for_program(ours)
        ours.close()
        stdio = connect_stdio(
            host, plan.program, outer=outer, terminal=terminal, log=plan.log, pidfd=born.pidfd
        )
        undo.pop_all()
    container = Container(
        plan.key, pid=born.pid, pidfd=born.pidfd, stdio=stdio, group=group, uid_base=plan.uid_base
    )
    host.add(container)
    return container


def _raise_child(plan: StartPlan, *, born: namespace.Child, connection: socket.socket) -> None:
    ranges = build.id_ranges(plan.uid_base)
    with _step("map ids"):
        idmap.write_maps(born.pid, uids=ranges, gids=ranges)
    _tell(connection, child.GO)
    if plan.network is not None:
        with _step("network"):
            create_veth(plan, pid=born.pid)
    _tell(connection, child.NET)


def _tell(connection: socket.socket, word: bytes) -> None:
    # A child that has failed is gone; what it said is read by `_wait_for_program`.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(word)


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


def connect_stdio(
    host: Host, plan: ProgramPlan, *, outer: tuple[int, int, int], terminal: int, log: str, pidfd: int
) -> Stdio:
    """Put the outer ends into the loop."""
    stdio = Stdio(
        host.loop,
        log=Log(log) if log else None,
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


def _wait_for_program(connection: socket.socket, *, seconds: float = BIRTH_SECONDS) -> int:
    """Wait until the child has become its program.  Returns: the terminal's master, or -1."""
    terminal = -1
    connection.settimeout(seconds)
    while True:
        fields, descriptors = receive(connection)
        if not fields:
            return terminal
        if fields.get("pty"):
            terminal = descriptors[0]
            continue
        if terminal >= 0:
            os.close(terminal)
        raise BirthFailed(
            Failure(
                step=fields["step"], errno=fields["errno"], message=fields["message"], code=fields["code"]
            )
        )


def receive(connection: socket.socket) -> Message:
    """Receive what a child says; an empty message is the end of its socket.  Raises: BirthFailed after BIRTH_SECONDS."""
    try:
        return protocol.receive(connection, size=65536)
    except ConnectionResetError:
        return Message({}, [])
    except TimeoutError:
        raise BirthFailed(Failure(step="wait", errno=110, message="the child did not answer")) from None


def execute(host: Host, container: Container, plan: ProgramPlan, *, key: str) -> Job:
    """Run one more program in a container.

    Raises: BirthFailed.
    """
    if not container.alive:
        raise BirthFailed(
            Failure(step="enter", errno=3, message="the container has ended", code="wrong_state")
        )
    filter_program = filter_for(plan.capabilities)
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        inner, outer = _make_stdio(plan, uid=container.uid_base)
        undo.callback(_close_all, outer)
        with _step("clone"), contextlib.closing(container.group.open_doors()) as doors:
            entering = namespace.spawn(0, cgroup_fd=doors.v2)
            if entering.pid == 0:
                ours.close()
                child.execute(
                    plan,
                    doors=doors,
                    pidfd=container.pidfd,
                    connection=theirs,
                    stdio=inner,
                    filter_program=filter_program,
                )
        theirs.close()
        _close_all(inner)
        _tell(ours, child.GO)
        worker = _receive_worker(ours, entering)
        undo.callback(reap, worker)
        terminal = _wait_for_program(ours, seconds=ENTER_SECONDS)
        ours.close()
        stdio = connect_stdio(host, plan, outer=outer, terminal=terminal, log="", pidfd=worker.pidfd)
        undo.pop_all()
    job = Job(key, pid=worker.pid, pidfd=worker.pidfd, stdio=stdio)
    host.add(job)
    return job


def _receive_worker(connection: socket.socket, entering: namespace.Child) -> namespace.Child:
    connection.settimeout(ENTER_SECONDS)
    try:
        fields, _ = receive(connection)
    finally:
        reap(entering)  # it has said what it had to say, or hangs
    if "worker" not in fields:
        failure = Failure(step="enter", errno=0, message="the entering process ended")
        if fields:
            failure = Failure(step=fields["step"], errno=fields["errno"], message=fields["message"])
        raise BirthFailed(failure)
    return namespace.Child(fields["worker"], os.pidfd_open(fields["worker"]))


def view(host: Host, plan: StartPlan) -> int:
    """Mount the root file system of a stopped container, detached.  Returns: the mount's descriptor."""
    with _step("rootfs"):
        return build.prepare_root(plan, host.maps.descriptor(plan.uid_base))


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def reap(born: namespace.Child) -> None:
    """Kill a child of ours, wait for its end, close its pidfd."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(born.pidfd, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitid(os.P_PIDFD, born.pidfd, os.WEXITED)
    os.close(born.pidfd)


def _delete_group(group: Group) -> None:
    with contextlib.suppress(OSError):
        group.delete(time.monotonic() + 2.0)

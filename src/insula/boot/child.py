# SPDX-License-Identifier: Apache-2.0
"""The child's side of a start and of an exec: from the clone to the program, one named step after the other.

Runs in a copy of the spawner, inside the new namespaces.  It never returns: it becomes the program, or sends the step
that failed as data and ends.  Standard library only.
"""

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import termios
from collections.abc import Iterator
from typing import NoReturn

from insula.boot import build, oom, program
from insula.boot.protocol import ProgramPlan, StartPlan
from insula.kernel import libc, namespace, netlink
from insula.kernel.cgroup import Doors

GO = b"go"
NET = b"net"
KNOWN = b"known"
PR_SET_DUMPABLE = 4
TIOCGPTPEER = 0x5441
#: include/linux/signal_types.h: handler, flags, restorer, mask; all zero is SIG_DFL.
_KERNEL_SIGACTION_BYTES = 32
_SIGSET_BYTES = 8


class Reporter:
    """Remembers the step in progress and tells the parent about failures and the terminal."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.step = "begin"

    @contextlib.contextmanager
    def named(self, step: str) -> Iterator[None]:
        self.step = step
        yield

    def wait_for(self, word: bytes) -> None:
        """Wait for the parent's word; end silently if the parent has gone."""
        if self.connection.recv(16) != word:
            os._exit(1)

    def send_terminal(self, master: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))]
        self.connection.sendmsg([b'{"pty": true}'], rights)

    def fail(self, error: BaseException) -> NoReturn:
        body = {
            "step": self.step,
            "errno": getattr(error, "errno", None) or 0,
            "message": _describe(error),
            "code": getattr(error, "code", "") if isinstance(error, program.StepFailed) else "",
        }
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(body).encode())
        os._exit(127)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" `{os.fsdecode(error.filename)}`" if isinstance(error.filename, str | bytes) else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def start(
    plan: StartPlan,
    prepared: build.Prepared,
    *,
    doors: Doors,
    connection: socket.socket,
    stage: str,
    stdio: tuple[int, int, int],
    filter_program: bytes,
) -> NoReturn:
    """Turn the cloned child into pid 1 of a container."""
    report = Reporter(connection)
    try:
        with report.named("cgroup"):
            _enter_groups(doors)
        with report.named("wait"):
            os.setsid()
            stage_fd = os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            report.wait_for(GO)
        with report.named("identity"):
            become_root()
            namespace_of_cgroup()
            libc.sethostname(plan.hostname.encode(), len(plan.hostname.encode()))
        with report.named("rootfs"):
            masks = build.assemble(plan, prepared, stage=stage_fd)
            build.pivot()
        with report.named("network"):
            report.wait_for(NET)
            configure_network(plan)
        with report.named("mask"):
            build.hide(masks)
            if plan.root.read_only:
                build.protect_root()
        _run(plan.program, report, stdio=stdio, filter_program=filter_program)
    except BaseException as error:  # noqa: BLE001  whatever it was, the parent must hear it
        report.fail(error)


def execute(
    plan: ProgramPlan,
    *,
    doors: Doors,
    pidfd: int,
    connection: socket.socket,
    stdio: tuple[int, int, int],
    filter_program: bytes,
) -> NoReturn:
    """Enter a container and run one more program there.  In a child of the spawner."""
    report = Reporter(connection)
    try:
        with report.named("enter"):
            # Not dumpable until exec: nobody inside may look into us, nor at /proc/PID/exe (CVE-2019-5736).
            libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
            _enter_groups(doors)
            report.wait_for(GO)
            namespace.enter(pidfd, namespace.JOINED)
            _continue_inside(connection)
            report.wait_for(KNOWN)  # who is not must not run: nobody could wait for its end
            # Only here: a terminal is for the leader, and CRIU dumps no process whose session lies outside.
            os.setsid()
            become_root()
            os.chdir("/")
        _run(plan, report, stdio=stdio, filter_program=filter_program)
    except BaseException as error:  # noqa: BLE001  whatever it was, the parent must hear it
        report.fail(error)


def _enter_groups(doors: Doors) -> None:
    doors.enter()
    doors.close()
    oom.go_first()


def _continue_inside(connection: socket.socket) -> None:
    # The joined pid and time namespaces hold for children only.  CLONE_PARENT makes the child one of the spawner's,
    # so that no process of ours has to stay beside it.
    child = namespace.spawn(namespace.CLONE_PARENT)
    if child.pid:
        try:
            connection.send(json.dumps({"worker": child.pid}).encode())
        except OSError:  # nobody waits for it any more: it must not run unknown to all
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os._exit(0)


def reset_signals() -> None:
    """Undo what the spawner, the interpreter or whoever started insulad ignores or blocks: that stays across exec.

    CRIU ends its helpers by SIGTERM and waits for ever if they ignore it.  By the system call, because the C library keeps
    signals 32 and 33 to itself, which a parent may have ignored like any other.
    """
    default = bytearray(_KERNEL_SIGACTION_BYTES)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            libc.rt_sigaction(number, libc.address_of(default), 0, _SIGSET_BYTES)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become_root() -> None:
    """Take the ids of the container's root: until then our ids are not mapped here."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def namespace_of_cgroup() -> None:
    """Make the cgroup of this moment the root of what the container sees."""
    libc.unshare(namespace.CLONE_NEWCGROUP)


#: Any port may be bound and ping sent by anybody inside: the namespace is the container's own, and a restored one may
#: belong to another user namespace than its processes, where capabilities over it do not count.
_NETWORK_SETTINGS = (
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 65535"),
)


def configure_network(plan: StartPlan) -> None:
    """Configure the network namespace that we are in: loopback, eth0, the two settings above."""
    with netlink.Route() as route:
        if plan.network is None:
            route.set_up("lo")
        else:
            network = plan.network
            if network.address6:
                # The port lets no other address through, so one that a router of the LAN offers would be a dead end.
                _write_setting("net/ipv6/conf/eth0/accept_ra", "0")
            netlink.configure_inside(
                route,
                interface="eth0",
                address=network.address,
                prefix_length=network.prefix_length,
                gateway=network.gateway,
                address6=network.address6,
                prefix_length6=network.prefix_length6,
                gateway6=network.gateway6,
            )
    for name, value in _NETWORK_SETTINGS:
        _write_setting(name, value)


def _write_setting(name: str, value: str) -> None:
    descriptor = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _run(
    plan: ProgramPlan, report: Reporter, *, stdio: tuple[int, int, int], filter_program: bytes
) -> NoReturn:
    with report.named("stdio"):
        reset_signals()
        if plan.tty:
            _open_terminal(plan, report)
        else:
            _take_pipes(stdio)
    with report.named("program"):
        program.execute(plan, filter_program=filter_program)


def _take_pipes(stdio: tuple[int, int, int]) -> None:
    stdin = stdio[0] if stdio[0] >= 0 else os.open("/dev/null", os.O_RDONLY)
    for target, source in enumerate((stdin, stdio[1], stdio[2])):
        os.dup2(source, target, inheritable=True)


def _open_terminal(plan: ProgramPlan, report: Reporter) -> None:
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, termios.TIOCSPTLCK if hasattr(termios, "TIOCSPTLCK") else 0x40045431, b"\0\0\0\0")
    if plan.rows and plan.columns:
        termios.tcsetwinsize(master, (plan.rows, plan.columns))
    # By the master's own peer, never by a path that the container could have exchanged (CVE-2025-52565).
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    report.send_terminal(master)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for target in (0, 1, 2):
        os.dup2(slave, target, inheritable=True)
    if slave > 2:
        os.close(slave)
    os.close(master)

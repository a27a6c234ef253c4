# SPDX-License-Identifier: Apache-2.0
"""insulad: lock, sockets, loop, signals.  Containers go on when it ends, however it ends.

Ready is told when both listeners accept: by sd_notify(3), and by a line `ready` on the descriptor of `--ready-fd`.
"""

import asyncio
import fcntl
import gc
import grp
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from insula.api import auth, server
from insula.daemon import log, wiring
from insula.daemon.door import HostDoor
from insula.daemon.doorstep import Doorstep
from insula.daemon.options import DEFAULT_GROUP, Options, parse
from insula.daemon.own_doors import OwnDoors
from insula.daemon.teardown import tear_down
from insula.kernel import cgroup, modules
from insula.model.errors import BadRequest, Conflict, InsulaError

LOG = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""A thread that has got its bytes waits up to this long for the interpreter while the loop decrypts the next ones;
Python's own 5 ms, once per buffer, would be the speed of a migration."""
BACKLOG = 1024
"""Connections that wait for the loop to take them; beyond that a client's connect fails at once (EAGAIN, unix(7))."""

FAILED = 125
"""insula's own failure, as docker's."""


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = parse(arguments)
    log.begin(logging.DEBUG if options.verbose else logging.INFO)
    os.umask(0o022)
    sys.setswitchinterval(SWITCH_S)
    try:
        _make_folders(options)
        lock = _lock(options.state / "lock")
    except InsulaError as error:
        print(f"insula daemon: {error}", file=sys.stderr)
        return FAILED
    except PermissionError as error:
        print(
            f"insula daemon: cannot use `{error.filename}`: {error.strerror} (run it as root)",
            file=sys.stderr,
        )
        return FAILED
    try:
        asyncio.run(_take_down(options) if options.teardown else _serve(options))
    except InsulaError as error:
        print(f"insula daemon: {error}", file=sys.stderr)
        return FAILED
    finally:
        cgroup.leave(cgroup.Hierarchies.detect(), cgroup.own_name(options.cgroup_parent))
        os.close(lock)
    return 0


def _make_folders(options: Options) -> None:
    options.state.mkdir(parents=True, exist_ok=True)
    options.state.chmod(0o700)
    options.run.mkdir(parents=True, exist_ok=True)
    # Users reach the socket through it; what else is in it is root's by its own mode.
    options.run.chmod(0o711)


def _lock(path: Path) -> int:
    """Take the state folder for this process; the kernel lets go of it when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(
            f"cannot use state folder `{path.parent}`: another insulad does",
            hint="give this one its own --state",
        ) from error
    return descriptor


async def _take_down(options: Options) -> None:
    daemon = wiring.build(options, loop=asyncio.get_running_loop())
    try:
        await asyncio.to_thread(tear_down, daemon)
    finally:
        daemon.close()


async def _serve(options: Options) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    group = _group_id(options.group)
    modules.load_all()
    _enter_own_group(options)
    daemon = wiring.build(options, loop=loop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    runner = server.build(daemon.api)
    await runner.setup()
    pid_file = options.run / "insulad.pid"
    undo = AsyncExitStack()
    try:
        own = None if group is None else OwnDoors(options.run, group=group)
        listener = _unix_listener(options.socket_path, group=group)
        doorstep = Doorstep(
            listener, runner, rate_of=daemon.api.gate.rate_of, counted_uid=auth.counted_uid, own=own
        )
        undo.push_async_callback(doorstep.close)
        if options.listen:
            door = HostDoor.open(
                options.listen,
                runner=runner,
                context=daemon.pki.server_context(),
                arrivals=daemon.arrivals,
                guests=daemon.api.gate.guests,
            )
            undo.push_async_callback(door.close)
        pid_file.write_text(f"{os.getpid()}\n")
        # What stands now stays: a collection that looks at all of it holds up every thread for 30 ms, also in a pause.
        gc.freeze()
        _tell_ready(options.ready_fd)
        LOG.info("ready", extra={"fields": {"name": options.name, "socket": str(options.socket_path)}})
        async with asyncio.TaskGroup() as tasks:
            services = [
                tasks.create_task(each) for each in (daemon.name_servers.run(), daemon.api.standing.run())
            ]
            await ended.wait()
            for each in services:
                each.cancel()
        LOG.info("ending, containers go on")
    finally:
        _tell_manager(b"STOPPING=1")
        await undo.aclose()
        await runner.cleanup()
        for path in (options.socket_path, pid_file):
            path.unlink(missing_ok=True)
        daemon.close()


def _enter_own_group(options: Options) -> None:
    """Have a share of the processors that containers do not use up, for this process and what it starts (ADR 29)."""
    try:
        cgroup.enter(cgroup.Hierarchies.detect(), cgroup.own_name(options.cgroup_parent))
    except OSError as error:
        LOG.warning("no share of the processors of one's own", extra={"fields": {"reason": str(error)}})


def _group_id(name: str) -> int | None:
    """Return the group of the socket; None: root only."""
    try:
        return grp.getgrnam(name or DEFAULT_GROUP).gr_gid
    except KeyError:
        if not name:
            return None
        raise BadRequest(
            f"cannot give the socket to group `{name}`: there is none", hint="groupadd"
        ) from None


def _unix_listener(path: Path, *, group: int | None) -> socket.socket:
    """Listen at the path; a socket that a killed daemon left is replaced (the lock says that it is dead)."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    if group is not None:
        os.chown(path, 0, group)
        path.chmod(0o660)
    return listener


def _tell_ready(descriptor: int | None) -> None:
    _tell_manager(b"READY=1")
    if descriptor is not None:
        os.write(descriptor, b"ready\n")
        os.close(descriptor)


def _tell_manager(words: bytes) -> None:
    """Tell the service manager, if there is one.  Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        try:
            notifier.sendto(words, f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError as error:
            LOG.warning("service manager not told", extra={"fields": {"reason": str(error)}})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

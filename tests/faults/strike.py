# SPDX-License-Identifier: Apache-2.0
"""Do a fault to two hosts, and take it back: kills, cut and slow links, full disks, cgroups without memory, clocks that jump.

The machine's clock is everybody's: each host has one of its own, by a library that its insulad and spawner load (`clock.c`).
Sources: nft(8), tc-tbf(8), posix_fallocate(3), cgroup-v1/memory.rst, ld.so(8).
"""

import os
import struct
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from demo import cleanup, hosts
from demo.hosts import Host, World

from faults.cases import Fault
from searched import found_below
from two_hosts import Pair

RATE = "40mbit"
PORTS = {"alpha": "ctl-1", "beta": "ctl-2"}
MEMORY = Path("/sys/fs/cgroup/memory")
SPARE_BYTES = 1 << 20
JUMP_S = 7 * 3600
CLOCK = Path(__file__).with_name("clock.c")
_SECONDS = struct.Struct("=q")
STATE_BYTES = 200 << 20

Undo = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Struck:
    """What was done.  undo: takes it back.  found: whether there was anything to strike."""

    undo: Undo
    found: bool = True


def strike(pair: Pair, fault: Fault, *, source: str, target: str, start: Callable[[str], None]) -> Struck:
    """Do a fault; start: how an insulad that was killed is started again."""
    match fault:
        case Fault.FAIL:
            return Struck(undo=_nothing)
        case Fault.KILL_SOURCE:
            return _kill_daemons(pair, (source,), start=start)
        case Fault.KILL_TARGET:
            return _kill_daemons(pair, (target,), start=start)
        case Fault.KILL_BOTH:
            return _kill_daemons(pair, (source, target), start=start)
        case Fault.CRIU_SOURCE:
            return _kill(pair.engines(source))
        case Fault.CRIU_TARGET:
            return _kill(pair.engines(target))
        case Fault.SPAWNER_SOURCE:
            return _kill(spawners(pair.host(source)))
        case Fault.SPAWNER_TARGET:
            return _kill(spawners(pair.host(target)))
        case Fault.FILLER:
            return _kill(fillers(pair.host(target)))
        case Fault.CUT:
            return _cut(pair.world, (source, target))
        case Fault.CUT_TO_SOURCE:
            return _cut(pair.world, (target,))
        case Fault.CUT_TO_TARGET:
            return _cut(pair.world, (source,))
        case Fault.SLOW:
            return _slow(pair.world)
        case Fault.DISK_SOURCE:
            return _fill_disk(pair.host(source))
        case Fault.DISK_TARGET:
            return _fill_disk(pair.host(target))
        case Fault.MEMORY_TARGET:
            return _limit_memory(pair.host(target))
        case Fault.CLOCK_SOURCE:
            return _jump(pair.host(source), JUMP_S)
        case Fault.CLOCK_TARGET:
            return _jump(pair.host(target), -JUMP_S)


def _nothing() -> None:
    return


def _kill_daemons(pair: Pair, names: Iterable[str], *, start: Callable[[str], None]) -> Struck:
    killed = tuple(names)
    for name in killed:
        pair.kill_daemon(name)

    def undo() -> None:
        for name in killed:
            start(name)

    return Struck(undo=undo)


def _kill(pids: Iterable[int]) -> Struck:
    found = list(pids)
    cleanup.kill(found)
    return Struck(undo=_nothing, found=bool(found))


def spawners(host: Host) -> list[int]:
    """Return the spawner of a host: its first process, not what it has forked."""
    own = {pid for pid in host.processes() if "insula.boot.spawner" in _words(pid)}
    tree = cleanup.parents()
    return [pid for pid in own if tree.get(pid) not in own]


def fillers(host: Host) -> list[int]:
    """Return what fills memory on a host: children of the spawner that hold userfaultfds."""
    parents = set(spawners(host))
    return [pid for pid, parent in cleanup.parents().items() if parent in parents and _is_filler(pid)]


def _is_filler(pid: int) -> bool:
    if "insula.boot.spawner" not in _words(pid) and "filler" not in _words(pid):
        return False
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if "userfaultfd" in os.readlink(f"/proc/{pid}/fd/{name}"):
                    return True
    return False


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _cut(world: World, senders: Iterable[str]) -> Struck:
    """Drop what these hosts send to the other on the way between the insulads."""
    drops = "\n".join(f'iifname "{PORTS[name]}" counter drop' for name in senders)
    _nft(world, f"table bridge faults {{ chain f {{ type filter hook forward priority 0;\n{drops}\n}}\n}}\n")
    return Struck(undo=lambda: _nft(world, "delete table bridge faults"))


def _nft(world: World, ruleset: str) -> None:
    subprocess.run(
        hosts.inside(world.outside, "nft", "-f", "-"), input=ruleset, text=True, check=True, timeout=20
    )


def _slow(world: World) -> Struck:
    for port in PORTS.values():
        _tc(world, "add", "dev", port, "root", "tbf", "rate", RATE, "burst", "32k", "latency", "200ms")

    def undo() -> None:
        for port in PORTS.values():
            _tc(world, "del", "dev", port, "root")

    return Struck(undo=undo)


def _tc(world: World, *words: str) -> None:
    subprocess.run(hosts.inside(world.outside, "tc", "qdisc", *words), check=True, timeout=20)


def mount_state(host: Host) -> None:
    """Put a host's state on a small file system of its own."""
    state = host.folder / "state"
    state.mkdir(mode=0o711)
    options = f"size={STATE_BYTES},mode=0711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "insula-faults", state], check=True, timeout=20)


def _fill_disk(host: Host) -> Struck:
    path = host.folder / "state" / "filled"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size, step = 0, STATE_BYTES
        while step >= 4096:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError:
                step //= 2
    finally:
        os.close(descriptor)
    return Struck(undo=lambda: path.unlink(missing_ok=True))


def _limit_memory(host: Host) -> Struck:
    groups = [Path(each) for each in found_below(MEMORY, f"**/{host.cgroup}") if os.path.isdir(each)]
    changed = []
    for group in groups:
        used = int((group / "memory.usage_in_bytes").read_text())
        with suppress(OSError):  # less than it uses already
            (group / "memory.limit_in_bytes").write_text(str(used + SPARE_BYTES))
            changed.append(group)

    def undo() -> None:
        for group in changed:
            with suppress(FileNotFoundError):
                (group / "memory.limit_in_bytes").write_text("-1")

    return Struck(undo=undo, found=bool(changed))


def clock_of(host: Host) -> dict[str, str]:
    """Give a host a clock of its own.  Returns: the environment by which its insulad, and what that starts, has it."""
    library = host.folder.parent / "clock.so"
    if not library.exists():
        command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(CLOCK)]
        subprocess.run(command, check=True, timeout=60)
    _set_clock(host, 0)
    return {"LD_PRELOAD": str(library), "INSULA_CLOCK": str(_clock_file(host))}


def _clock_file(host: Host) -> Path:
    return host.folder / "clock"


def _set_clock(host: Host, seconds: int) -> None:
    descriptor = os.open(_clock_file(host), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, _SECONDS.pack(seconds), 0)  # in place: it is mapped
    finally:
        os.close(descriptor)


def _jump(host: Host, seconds: int) -> Struck:
    _set_clock(host, seconds)
    maps = Path(f"/proc/{host.daemon.pid}/maps").read_text() if host.daemon is not None else ""
    return Struck(undo=lambda: _set_clock(host, 0), found="clock.so" in maps)

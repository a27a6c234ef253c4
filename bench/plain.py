# SPDX-License-Identifier: Apache-2.0
"""What the same Redis client sees when podman, or CRIU alone, dumps and restores the same server.

Both stop and copy on this very host: nothing is carried over a link, and the server comes back into the network namespace
that it left, so that its connections go on.  podman: `container checkpoint --tcp-established`, then `restore`, images
where it keeps them; its runtime is runc, which runs the CRIU that is first in PATH (crun has its own inside, and refuses
hosts with both kinds of cgroups).  CRIU alone: no container, images on a tmpfs.
Sources: podman-container-checkpoint(1), podman-container-restore(1), criu(8).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from demo import cleanup
from demo.clients import LoadClient
from demo.hosts import World, inside
from demo.users import CommandFailed

from bench import peers
from bench.moving import ADDRESS, LAN, Found, PartFailed, PartMissing, Row, median, most, wait
from bench.redis import COMMAND, PORT
from insula.kernel import libc
from insula.kernel.criu_find import CriuProgram, find_criu
from insula.kernel.netlink import Route

SETTLE_S = 0.5
RUN_S = 60
NAME = "insula-bench-redis"
CGROUP = "libpod_parent"
"""Of podman's own; it leaves it behind, empty."""
IMAGE = "localhost/insula-bench-redis"


@dataclass(kw_only=True)
class Seen:
    """What the turns of a peer brought."""

    gaps_ms: list[float] = field(default_factory=list)
    walls_ms: list[float] = field(default_factory=list)
    """From the beginning of the first command to the end of the last one."""
    failed: int = 0
    reason: str = ""


@contextmanager
def place() -> Iterator[World]:
    """Make a network namespace for the server, one for the client, and a folder.  Raises: PartFailed."""
    with World(lans=(LAN,), names=("alpha",)) as world:
        with Route.in_namespace(world.hosts["alpha"].network) as route:
            route.add_address(LAN.name, ADDRESS, 24)
        try:
            yield world
        except (CommandFailed, peers.PeerFailed, OSError, subprocess.SubprocessError) as error:
            raise PartFailed(str(error)) from error


def watch(world: World, turn: Callable[[], None], *, megabytes: int, turns: int) -> Seen:
    """Fill the server and have a client ask it at full rate during each turn."""
    client = LoadClient("redis", ADDRESS, port=PORT, network=world.outside, megabytes=megabytes)
    client.wait_ready()
    seen = Seen()
    for _ in range(turns):
        wait(SETTLE_S)
        client.take_gap_ms()
        began = time.monotonic()
        turn()
        seen.walls_ms.append((time.monotonic() - began) * 1000)
        wait(SETTLE_S)
        seen.gaps_ms.append(client.take_gap_ms())
    outcome = client.finish()
    seen.failed, seen.reason = outcome.failed + outcome.lost, outcome.reason
    return seen


def found(name: str, seen: Seen, *, megabytes: int) -> Found:
    """Return a peer's line.  Where its connections did not survive, the commands' time stands for the gap."""
    kept = not seen.failed
    gaps = seen.gaps_ms if kept else seen.walls_ms
    print(
        f"{name}: {len(gaps)} turns, gap {median(gaps)} ms, its commands {median(seen.walls_ms)} ms"
        + ("" if kept else f"; its client failed ({seen.reason}): the commands' time is taken for the gap"),
        flush=True,
    )
    words = f"{name}, Redis {megabytes} MB, same host"
    rows = [Row(load=words, gaps_ms=gaps, failed=seen.failed, is_peer=True)]
    return Found(
        rows=rows,
        facts={
            f"{name}_gap_p50_ms": median(gaps),
            f"{name}_gap_max_ms": most(gaps),
            f"{name}_turns": len(gaps),
        },
    )


# -- podman ------------------------------------------------------------------------------------------------------------


def run_podman(*, megabytes: int, turns: int) -> Found:
    """Measure podman.  Raises: PartFailed, PartMissing."""
    criu = _criu()
    peers.install()
    missing = [name for name in ("podman", "runc", "conmon") if shutil.which(name) is None]
    if missing:
        raise PartMissing(f"program `{missing[0]}`")
    was_there = bool(cleanup.cgroups_named(CGROUP))
    with place() as world:
        podman = Podman(world.folder / "podman", criu)
        try:
            podman.start(world.hosts["alpha"].network)
            seen = watch(world, podman.turn, megabytes=megabytes, turns=turns)
        finally:
            podman.end()
    if not was_there:
        cleanup.remove_cgroups(CGROUP)
    return found("podman", seen, megabytes=megabytes)


class Podman:
    """A podman with a store of its own."""

    def __init__(self, folder: Path, criu: CriuProgram) -> None:
        self._folder = folder
        programs = folder / "bin"
        programs.mkdir(parents=True)
        wrapper = programs / "criu"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(criu.argv)} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        configuration = folder / "containers.conf"
        configuration.write_text(peers.PODMAN_CONFIGURATION, encoding="utf-8")
        self._environment = {
            "CONTAINERS_CONF": str(configuration),
            "PATH": f"{programs}:{os.environ.get('PATH', '')}",
        }

    def start(self, network: int) -> None:
        """Run the server in a network namespace."""
        root = self._folder / "rootfs"
        server = _make_root(root)
        archive = self._folder / "root.tar"
        peers.command("tar", "-C", str(root), "-cf", str(archive), ".")
        self._run("import", str(archive), IMAGE)
        where = f"ns:/proc/{os.getpid()}/fd/{network}"
        self._run("run", "--detach", "--name", NAME, "--network", where, IMAGE, server, *COMMAND[1:])

    def turn(self) -> None:
        """Dump and restore once."""
        self._run("container", "checkpoint", "--tcp-established", NAME)
        self._run("container", "restore", "--tcp-established", NAME)

    def end(self) -> None:
        """Remove container and store."""
        for words in (("rm", "--force", "--time", "0", NAME), ("system", "reset", "--force")):
            try:
                self._run(*words)
            except (peers.PeerFailed, subprocess.TimeoutExpired) as error:
                print(f"bench: podman left something: {error}", flush=True)

    def _run(self, *words: str) -> None:
        folder = self._folder
        base = (
            "podman",
            "--root",
            f"{folder}/root",
            "--runroot",
            f"{folder}/run",
            "--tmpdir",
            f"{folder}/tmp",
        )
        peers.command(*base, *words, environment=self._environment)


def _make_root(root: Path) -> str:
    """Copy the server and its libraries; returns its path in there."""
    program = shutil.which(COMMAND[0])
    if program is None:
        raise PartMissing(f"program `{COMMAND[0]}`")
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for file in (program, *peers.libraries(listing)):
        target = root / file.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), target)
    for name in ("proc", "dev", "sys", "tmp"):
        (root / name).mkdir(mode=0o755, exist_ok=True)
    return program


# -- CRIU alone --------------------------------------------------------------------------------------------------------


def run_criu(*, megabytes: int, turns: int) -> Found:
    """Measure CRIU alone.  Raises: PartFailed, PartMissing."""
    criu = _criu()
    with place() as world:
        images = world.folder / "images"
        images.mkdir()
        libc.mount(b"tmpfs", str(images).encode(), b"tmpfs", 0, b"mode=700")
        network = world.hosts["alpha"].network
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(
            inside(network, *COMMAND),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            cwd="/",
            start_new_session=True,
        )

        def turn() -> None:
            _dump_and_restore(criu, inside(network), images=images, pid=server.pid)

        seen = watch(world, turn, megabytes=megabytes, turns=turns)
    server.poll()
    return found("criu", seen, megabytes=megabytes)


def _dump_and_restore(criu: CriuProgram, within: list[str], *, images: Path, pid: int) -> None:
    common = ("--images-dir", str(images), "--tcp-established", "--manage-cgroups=ignore")
    _criu_command([*within, *criu.argv, "dump", "--tree", str(pid), *common], log=images / "dump.log")
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)  # it is needed again
    _criu_command([*within, *criu.argv, "restore", "--restore-detached", *common], log=images / "restore.log")


def _criu_command(words: list[str], *, log: Path) -> None:
    quiet = subprocess.DEVNULL
    done = subprocess.run(
        [*words, "--log-file", log.name], stdin=quiet, stdout=quiet, stderr=quiet, timeout=RUN_S, check=False
    )
    if done.returncode:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        errors = [line for line in lines if "Error" in line] or lines or ["it said nothing"]
        raise PartFailed(f"criu ended with {done.returncode}: {errors[0]}")


def _criu() -> CriuProgram:
    criu = find_criu()
    if criu is None:
        raise PartMissing("a CRIU: run scripts/setup")
    return criu

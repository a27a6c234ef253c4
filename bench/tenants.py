# SPDX-License-Identifier: Apache-2.0
"""What a flood of one tenant costs another: requests and application of B, while A does its worst, against B alone.

A, within limits that an administrator gave it by `insula tenant set`: a fork bomb, a memory hog, a log flood (each in a
container), requests without a pause from two processes, images that are bombs, its log and its part of the audit log
read again and again on eight connections: one after the other, then all at once.
A's processes on the host have half a processor, as a session that systemd limits.  B: a client that asks insulad 50 times
a second, and a server and its client in two containers, 100 requests a second.  Alone and flooded in turns, in one run on
one machine: judge the ratios, never the milliseconds.  Beside them stands who waited: the share of the time for which a
process could have run and did not, as a processor was somebody else's (schedstat).

    python bench/tenants.py [ROUNDS] [SECONDS] [FLOOD …]     floods: forks memory log requests images reads all

Exit codes: 0 measured; 1 insula failed; 3 something is missing on this machine.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup, users
from demo.hosts import Host, World, tail
from demo.report import align
from demo.users import CommandFailed, User

from bench.figures import bench_line, percentile, ratio
from insula.kernel.cgroup import Group, Hierarchies, Limits, delete_parent
from insula.model.errors import ContainerNotFound, InsulaError

ROUNDS, SECONDS = 3, 6.0
SETTLE_S = 1.5
"""After a flood has begun or ended: nobody's figures."""
EXIT_FAILED, EXIT_MISSING = 1, 3
NAMES = ("insula-bench-a", "insula-bench-b")
IMAGE = "host"
LIMITS = (
    "memory=256m", "cpus=1", "pids=100", "disk=512m", "log=1m", "images=64m", "containers=6", "networks=2", "ports=4",
    "streams=40", "requests=50",
)  # fmt: skip
SESSION = Limits(cpu_quota_us=50_000, cpu_period_us=100_000)
FLOODED_DOORS = ("own", "everybodys")
CONNECTIONS = 100
READINGS = ("/v1/containers/written/logs?tail=all,/v1/audit?tail=10000", "8")
WRITTEN = "yes 0123456789012345678901234567890123456789 | head -c 900000"
"""What fills a log."""

FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
MEMORY_HOG = "while :; do {python} -c 'x = bytearray(1 << 30)'; done"
LOG_FLOOD = "yes 0123456789012345678901234567890123456789012345678901234567890123456789"
SERVER = """
import hashlib, socket, threading
listener = socket.create_server(("", 7000))
block = bytes(1 << 16)
def serve(connection):
    while asked := connection.recv(64):
        connection.sendall(hashlib.sha256(block + asked).digest())
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, sys, time
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 7000), 5)
        break
    except OSError:
        time.sleep(0.1)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
planned = time.time()
while True:
    time.sleep(max(0.0, planned - time.time()))
    connection.sendall(b"x" * 16)
    connection.recv(64)
    print(f"{planned:.4f} {(time.time() - planned) * 1000:.3f}", flush=True)
    planned = max(planned + 0.01, time.time() - 0.01)
"""


CONTAINERS = {
    "forks": ("{python}", "-c", FORK_BOMB),
    "memory": ("sh", "-c", MEMORY_HOG),
    "log": ("sh", "-c", LOG_FLOOD),
}
"""Floods from within a container: its command."""
FLOODS = {
    **{each: (each,) for each in (*CONTAINERS, "requests", "images", "reads")},
    "all": (*CONTAINERS, "requests", "images", "reads"),
}
WATCHED = ("insulad", "spawner", "B")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in UTC seconds, and whom it cost what: by the watched, seconds on a processor and waiting for one."""

    begin: float
    end: float
    used: dict[str, tuple[float, float]]

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    @property
    def length(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Pair:
    """B alone, and right after it flooded."""

    alone: Span
    flooded: Span


@dataclass(kw_only=True)
class Bench:
    """One host, its two users, what they run."""

    host: Host
    a: User
    b: User
    root: User
    python: str
    session: Group
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    watched: dict[str, list[int]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Give A its limits; start B's server and its client."""
        self.root.run(self.host.socket, "tenant", "create", self.a.name, *LIMITS)
        self._run(self.a, "written", "sh", "-c", WRITTEN)
        self._run(self.b, "server", self.python, "-c", SERVER)
        self._run(self.b, "client", self.python, "-c", CLIENT, "server")
        self.watched = {
            "insulad": pids_with(f"{self.host.folder}/state"),
            "spawner": pids_with("insula.boot.spawner", f"{self.host.folder}/run"),
            "B": sorted(cleanup.members(f"tenant-{self.b.name}")),
        }

    def _run(self, user: User, name: str, *words: str) -> None:
        user.run(self.host.socket, "run", "-d", "--name", name, IMAGE, *words)

    @contextmanager
    def flood(self, kinds: Sequence[str]) -> Iterator[None]:
        """Let A do its worst while the block runs."""
        with ExitStack() as stack:
            stack.callback(self._end_flood)
            if "requests" in kinds:
                for door in FLOODED_DOORS:
                    stack.enter_context(self._host_process("flood", str(CONNECTIONS), door))
            if "reads" in kinds:
                stack.enter_context(self._host_process("read", *READINGS))
            if "images" in kinds:
                stack.enter_context(self._host_process("bomb"))
            for name in [each for each in kinds if each in CONTAINERS]:
                self._begin(name, *(word.replace("{python}", self.python) for word in CONTAINERS[name]))
            yield

    def _begin(self, name: str, *words: str) -> None:
        # By the administrator for A: A itself is busy with its flood, and its requests are refused.
        spec = {"image": IMAGE, "name": name, "command": list(words)}
        client, where = self.host.client(), {"tenant": self.a.name}
        client.call("POST", "/v1/containers", query=where, body=spec)
        client.call("POST", f"/v1/containers/{name}/start", query=where)

    def _end_flood(self) -> None:
        for name in CONTAINERS:
            with suppress(ContainerNotFound):
                where = {"tenant": self.a.name, "force": "1"}
                self.host.client().call("DELETE", f"/v1/containers/{name}", query=where)

    @contextmanager
    def _host_process(self, kind: str, *words: str) -> Iterator[None]:
        process = self.begin(self.a, kind, *words)
        self.session.attach(process.pid)
        try:
            yield
        finally:
            said, _ = process.communicate()
            self.answers[kind] = json.loads(said or b"{}")

    def span(self, seconds: float) -> Span:
        """Let time pass, and look what it cost whom."""
        begin, before = time.time(), {each: spent(self.watched[each]) for each in WATCHED}
        wait(seconds)
        used = {}
        for each, (ran, waited) in before.items():
            now = spent(self.watched[each])
            used[each] = now[0] - ran, now[1] - waited
        return Span(begin, time.time(), used)

    def begin(self, user: User, kind: str, *words: str) -> "subprocess.Popen[bytes]":
        """Run a part of tenant_flood.py as a user, until its standard input is closed."""
        program = self.host.folder.parent / "tenant_flood.py"
        return subprocess.Popen(
            [users.open_python(), "-SI", str(program), kind, str(self.host.socket), *words],
            user=user.uid, group=user.gid, extra_groups=user.groups, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip


def measure(
    bench: Bench, floods: Sequence[str], *, rounds: int, seconds: float
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Let B work, and A flood in turns.  Returns: when, by the flood, and B's requests, a line each."""
    pairs: dict[str, list[Pair]] = {each: [] for each in floods}
    targets = "/v1/containers,/v1/containers/server,/v1/containers/server/stats,/v1/networks"
    with open(bench.host.folder / "probe.out", "w+b") as out:
        probe = bench.begin(bench.b, "probe", targets, "20")
        reader = subprocess.Popen(["cat"], stdin=probe.stdout, stdout=out)
        try:
            wait(SETTLE_S)
            for flood in [*floods] * rounds:
                alone = bench.span(seconds)
                with bench.flood(FLOODS[flood]):
                    wait(SETTLE_S)
                    pairs[flood].append(Pair(alone, bench.span(seconds)))
                wait(SETTLE_S)
        finally:
            if probe.stdin is not None:
                probe.stdin.close()
            probe.wait()
            reader.wait()
        out.seek(0)
        return pairs, out.read().decode().splitlines()


def wait(seconds: float) -> None:
    """Let time pass: what is measured goes on meanwhile."""
    threading.Event().wait(seconds)


def pids_with(*words: str) -> list[int]:
    """Return the processes in whose command line all these words stand."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = each.read_bytes().decode(errors="replace")
            if all(word in line for word in words) and "insula" in line:
                found.append(int(each.parent.name))
    return found


def spent(pids: Sequence[int]) -> tuple[float, float]:
    """Return seconds on a processor and seconds waiting for one, of all threads.  Source: sched-stats.rst."""
    ran = waited = 0
    for pid in pids:
        for each in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                numbers = each.read_text().split()
                ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    return ran / 1e9, waited / 1e9


def figures(lines: list[str], spans: Sequence[Span]) -> list[float]:
    """Return the milliseconds of what was planned within the spans.  Lines: `AT MS` and perhaps a status, 200 alone."""
    found = []
    for line in lines:
        at, taken, *status = line.split()
        if any(float(at) in each for each in spans):
            if status and status != ["200"]:
                raise CommandFailed(f"B's request was answered {status[0]}")
            found.append(float(taken))
    return found


def report(bench: Bench, pairs: dict[str, list[Pair]], *, probes: list[str]) -> str:
    """Return the tables and the last line, which is of the last flood."""
    said = bench.b.run(bench.host.socket, "logs", "client").stdout.splitlines()
    rows = [("flood", "of B", "alone p50 ms", "p99 ms", "flooded p50 ms", "p99 ms", "p99 ratio", "n")]
    facts: dict[str, object] = {}
    for flood, times in pairs.items():
        for name, lines in (("api", probes), ("app", said)):
            quiet = figures(lines, [each.alone for each in times])
            loud = figures(lines, [each.flooded for each in times])
            p99 = ratio(percentile(loud, 99), percentile(quiet, 99))
            rows.append((
                flood, name, f"{percentile(quiet, 50):.2f}", f"{percentile(quiet, 99):.2f}",
                f"{percentile(loud, 50):.2f}", f"{percentile(loud, 99):.2f}", str(p99), str(len(loud)),
            ))  # fmt: skip
            facts[f"neighbour_{name}_p99_ratio"] = p99
    answered = [f"  A was answered: {json.dumps(each)}" for each in bench.answers.values()]
    return "\n".join([*align(rows), "", *align(_costs(pairs)), *answered, bench_line(facts)])


def _costs(pairs: dict[str, list[Pair]]) -> list[tuple[str, ...]]:
    """Return who ran and who waited, in per cent of the time."""
    titles = [f"{each} {what}" for each in WATCHED for what in ("runs %", "waits %")]
    rows: list[tuple[str, ...]] = [("", *titles)]
    alone = [each.alone for times in pairs.values() for each in times]
    for title, spans in (("alone", alone), *((k, [each.flooded for each in v]) for k, v in pairs.items())):
        length = sum(each.length for each in spans)
        shares = [sum(each.used[who][i] for each in spans) / length for who in WATCHED for i in (0, 1)]
        rows.append((title, *(f"{share * 100:.1f}" for share in shares)))
    return rows


@contextmanager
def session() -> Iterator[Group]:
    """Make the cgroup of A's processes on the host."""
    hierarchies, parent = Hierarchies.detect(), f"insula-bench-{os.getpid()}"
    group = Group(hierarchies, parent, "a")
    group.create()
    group.limit_cpu(SESSION)
    try:
        yield group
    finally:
        group.kill()
        group.delete(time.monotonic() + 10)
        delete_parent(hierarchies, parent)


def main(words: list[str]) -> int:
    """Measure on one host that is made for it."""
    if check.refuse("bench"):
        return EXIT_MISSING
    rounds = int(words[0]) if words else ROUNDS
    seconds = float(words[1]) if len(words) > 1 else SECONDS
    floods = words[2:] or [*FLOODS]
    with cleanup.alone("bench"), World(names=("alpha",)) as world, session() as group:
        host = world.hosts["alpha"]
        try:
            program = users.install_program(world.folder)
            shutil.copy(Path(__file__).with_name("tenant_flood.py"), world.folder)
            a, b = users.make(NAMES, program=program)
            world.start()
            bench = Bench(
                host=host, a=a, b=b, root=users.administrator(program), session=group,
                python=check.python_of_host() or "/usr/bin/python3",
            )  # fmt: skip
            bench.prepare()
            pairs, probes = measure(bench, floods, rounds=rounds, seconds=seconds)
            print(report(bench, pairs, probes=probes))
        except (CommandFailed, InsulaError, OSError, ValueError) as error:
            print(f"bench: {error}\n{tail(host)}", file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(NAMES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""What a flood of one tenant costs another: requests and application of B, while A does its worst, against B alone.

A, within limits that an administrator gave it by `insula tenant set`: a fork bomb, a memory hog, a log flood (each in a
container), requests without a pause from two processes, images that are bombs.  A's processes on the host have half a
processor, as a session that systemd limits.  B: a client that asks insulad 50 times a second, and a server and its
client in two containers, 100 requests a second.  Alone and flooded in turns, in one run on one machine: judge the
ratios, never the milliseconds.

    python bench/tenants.py [ROUNDS] [SECONDS]

Exit codes: 0 measured; 1 insula failed; 3 something is missing on this machine.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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

ROUNDS, SECONDS = 3, 10.0
SETTLE_S = 2.0
"""After a flood has begun or ended: nobody's figures."""
EXIT_FAILED, EXIT_MISSING = 1, 3
NAMES = ("insula-bench-a", "insula-bench-b")
IMAGE = "host"
LIMITS = (
    "memory=256m", "cpus=1", "pids=100", "disk=512m", "log=1m", "images=64m", "containers=6", "networks=2", "ports=4",
    "streams=40", "requests=50",
)  # fmt: skip
SESSION = Limits(cpu_quota_us=50_000, cpu_period_us=100_000)
FLOODS = 2
CONNECTIONS = 100

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


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in UTC seconds."""

    begin: float
    end: float

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment < self.end


@dataclass(kw_only=True)
class Bench:
    """One host, its two users, what they run."""

    host: Host
    a: User
    b: User
    root: User
    python: str
    session: Group
    answers: list[dict[str, int]] = field(default_factory=list)

    def prepare(self) -> None:
        """Give A its limits; start B's server and its client."""
        self.root.run(self.host.socket, "tenant", "create", self.a.name, *LIMITS)
        self._run(self.b, "server", self.python, "-c", SERVER)
        self._run(self.b, "client", self.python, "-c", CLIENT, "server")

    def _run(self, user: User, name: str, *words: str) -> None:
        user.run(self.host.socket, "run", "-d", "--name", name, IMAGE, *words)

    @contextmanager
    def flood(self) -> Iterator[None]:
        """Let A do its worst while the block runs."""
        with ExitStack() as stack:
            stack.callback(self._end_flood)
            for number in range(FLOODS):
                stack.enter_context(self._host_process("flood", str(CONNECTIONS), report=number == 0))
            stack.enter_context(self._host_process("bomb", report=True))
            self._begin("forks", self.python, "-c", FORK_BOMB)
            self._begin("hog", "sh", "-c", MEMORY_HOG.format(python=self.python))
            self._begin("talker", "sh", "-c", LOG_FLOOD)
            yield

    def _begin(self, name: str, *words: str) -> None:
        # By the administrator for A: A itself is busy with its flood, and its requests are refused.
        spec = {"image": IMAGE, "name": name, "command": list(words)}
        client, where = self.host.client(), {"tenant": self.a.name}
        client.call("POST", "/v1/containers", query=where, body=spec)
        client.call("POST", f"/v1/containers/{name}/start", query=where)

    def _end_flood(self) -> None:
        for name in ("forks", "hog", "talker"):
            with suppress(ContainerNotFound):
                where = {"tenant": self.a.name, "force": "1"}
                self.host.client().call("DELETE", f"/v1/containers/{name}", query=where)

    @contextmanager
    def _host_process(self, kind: str, *words: str, report: bool) -> Iterator[None]:
        process = self.begin(self.a, kind, *words)
        self.session.attach(process.pid)
        try:
            yield
        finally:
            said, _ = process.communicate()
            if report:
                self.answers.append(json.loads(said or b"{}"))

    def begin(self, user: User, kind: str, *words: str) -> "subprocess.Popen[bytes]":
        """Run a part of tenant_flood.py as a user, until its standard input is closed."""
        program = self.host.folder.parent / "tenant_flood.py"
        return subprocess.Popen(
            [users.open_python(), "-SI", str(program), kind, str(self.host.socket), *words],
            user=user.uid, group=user.gid, extra_groups=user.groups, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip


def measure(bench: Bench, *, rounds: int, seconds: float) -> tuple[list[Span], list[Span], list[str]]:
    """Let B work, and A flood in turns.  Returns: when B was alone, when flooded, and B's requests, a line each."""
    alone: list[Span] = []
    flooded: list[Span] = []
    targets = "/v1/containers,/v1/containers/server,/v1/containers/server/stats,/v1/networks"
    with open(bench.host.folder / "probe.out", "w+b") as out:
        probe = bench.begin(bench.b, "probe", targets, "20")
        reader = subprocess.Popen(["cat"], stdin=probe.stdout, stdout=out)
        try:
            wait(SETTLE_S)
            for _ in range(rounds):
                alone.append(span(seconds))
                with bench.flood():
                    wait(SETTLE_S)
                    flooded.append(span(seconds))
                wait(SETTLE_S)
        finally:
            if probe.stdin is not None:
                probe.stdin.close()
            probe.wait()
            reader.wait()
        out.seek(0)
        return alone, flooded, out.read().decode().splitlines()


def wait(seconds: float) -> None:
    """Let time pass: what is measured goes on meanwhile."""
    threading.Event().wait(seconds)


def span(seconds: float) -> Span:
    begin = time.time()
    wait(seconds)
    return Span(begin, time.time())


def figures(lines: list[str], spans: list[Span]) -> list[float]:
    """Return the milliseconds of what was planned within the spans.  Lines: `AT MS` and perhaps a status, 200 alone."""
    found = []
    for line in lines:
        at, taken, *status = line.split()
        if any(float(at) in each for each in spans):
            if status and status != ["200"]:
                raise CommandFailed(f"B's request was answered {status[0]}")
            found.append(float(taken))
    return found


def report(bench: Bench, *, alone: list[Span], flooded: list[Span], probes: list[str]) -> str:
    """Return the table and the last line."""
    said = bench.b.run(bench.host.socket, "logs", "client").stdout.splitlines()
    rows = [("", "alone p50 ms", "p99 ms", "flooded p50 ms", "p99 ms", "p99 ratio", "n")]
    facts: dict[str, object] = {}
    for name, title, lines in (("api", "B's requests", probes), ("app", "B's application", said)):
        quiet, loud = figures(lines, alone), figures(lines, flooded)
        p99 = ratio(percentile(loud, 99), percentile(quiet, 99))
        rows.append((
            title, f"{percentile(quiet, 50):.2f}", f"{percentile(quiet, 99):.2f}",
            f"{percentile(loud, 50):.2f}", f"{percentile(loud, 99):.2f}", str(p99), str(len(loud)),
        ))  # fmt: skip
        facts[f"neighbour_{name}_p99_ratio"] = p99
    answered = [f"  A was answered: {json.dumps(each)}" for each in bench.answers]
    return "\n".join([*align(rows), *answered, bench_line(facts)])


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
            alone, flooded, probes = measure(bench, rounds=rounds, seconds=seconds)
            print(report(bench, alone=alone, flooded=flooded, probes=probes))
        except (CommandFailed, InsulaError, OSError, ValueError) as error:
            print(f"bench: {error}\n{tail(host)}", file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(NAMES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""How much slower programs run while they are watched, beside strace and bpftrace; how many events are told without loss;
what 500 containers at rest cost.

    python bench/monitor.py [--pairs N] [--containers N] [--only slower|events|idle]

Three programs in containers: redis-server asked by redis-benchmark from outside, sqlite3 inserting rows, and a loop of
getppid(2), which is the worst case: nothing but system calls.  Each runs unwatched, counted (`/calls`, as `insula top`
does: by looks), counted call by call (`exact=1`), told of in full (`/trace`), unwatched beside a container that is told of in full, and under `strace -f -c` and bpftrace's counting.

A slow-down compares rounds of about half a second, plain and watched in turns (the first of a pair changes), by the
lower quartile of the time of one piece of work: whatever else runs on the machine only ever makes a round longer.  The
figures that end in `_cpu` are the same of the processor time of the program itself, which other load disturbs less.
Where calls are counted by looks, rounds are longer: several looks lie in each.
The programs have the first processor, clients and insulad all of them.

Exit codes: 0 measured; 1 something failed; 3 something is missing on this machine.
"""

import argparse
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup, users
from demo.hosts import World, tail
from demo.report import align
from demo.users import CommandFailed

from bench.figures import bench_line
from bench.moving import ADDRESS, LAN
from insula.client.http import Answer, Client
from insula.model.errors import InsulaError

EXIT_FAILED, EXIT_MISSING = 1, 3
PAIRS = 12
SLOW_PAIRS = 3
"""Of tracers that make a program many times slower."""
SLOWER = 20
"""So much less work is done under those."""
LONGER = 8
"""So much more work is done while calls are counted by looks, in fewer rounds."""
IDLE_S = 20.0
PER_TENANT = 100
FLOOD_S = 3.0
RATES = (25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000)
WITHIN_S = 60.0
TOOL_ENDS_S = 2.0
FIRST_PROCESSOR = {0}

#: Does as many pieces of work as each line that it reads says, and says how many seconds they took.
WORKER = """
import sys, time
{prepare}
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    for n in range(int(line)):
        {work}
    print(time.perf_counter() - begun, flush=True)
"""
GETPPID = ("import os; ask = os.getppid", "ask()")
#: In memory: a disk would be measured otherwise.  Each insert makes a journal and removes it.
SQLITE = (
    "import sqlite3; db = sqlite3.connect('/dev/shm/db', isolation_level=None);"
    " db.execute('create table t (a, b)')",
    "db.execute('insert into t values (?, ?)', (n, str(n)))",
)
FLOOD = """
import os, sys, time
paths = [f"/dev/shm/{n}" for n in range(256)]
for path in paths:
    os.close(os.open(path, os.O_CREAT))
open_, close = os.open, os.close
print("ready", flush=True)
for line in sys.stdin:
    rate, seconds = map(float, line.split())
    made, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        for n in range(max(0, int(rate * spent) - made)):
            close(open_(paths[n & 255], 0))
            made += 1
        time.sleep(0.0005)
    print(made, time.perf_counter() - begun, flush=True)
"""
PARTS = ("slower", "events", "idle")
#: How many pieces of work are a round.
ROUNDS = {"redis": 20_000, "sqlite3": 4_000, "getppid": 1_500_000}


class Spent(NamedTuple):
    """For one piece of work."""

    seconds: float
    cpu_s: float


class Worker:
    """A program in a container that works when it is told to."""

    def __init__(self, program: Path, socket: Path, name: str, text: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [program, "-H", f"unix://{socket}", "run", "-i", "--name", name, "--network", "none", "host",
             "python3", "-uc", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def read(self) -> str:
        """Return the next line that it says.  Raises: CommandFailed."""
        line = self._process.stdout.readline().decode() if self._process.stdout else ""
        if not line:
            raise CommandFailed(f"`{self.name}` has ended")
        return line

    def tell(self, line: str) -> str:
        """Tell it something; returns its answer."""
        if self._process.stdin is None:
            raise CommandFailed(f"`{self.name}` does not listen")
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(WITHIN_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass
class Reading:
    """Reads a streamed answer as fast as it can, and counts what it tells."""

    answer: Answer
    told: int = 0
    lost: int = 0
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        next(self.answer.lines())  # it has begun
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        connection = self.answer.detach()
        rest = b""
        while data := connection.recv(1 << 20):
            whole, _, rest = (rest + data).rpartition(b"\n")
            self.told += whole.count(b'{"type":"event"')
            if b'{"type":"lost"' in whole:
                self.lost += sum(map(int, re.findall(rb'"type":"lost","events":(\d+)', whole)))

    def close(self) -> None:
        self.answer.detach().shutdown(2)
        self.thread.join(WITHIN_S)
        self.answer.close()


@contextmanager
def watched(client: Client, name: str, what: str, **query: str) -> Iterator[Reading]:
    """Watch a container while the block runs."""
    reading = Reading(client.open("GET", f"/v1/containers/{name}/{what}", query=query))
    try:
        yield reading
    finally:
        reading.close()


@contextmanager
def outside_tool(command: Sequence[str], *, until: str) -> Iterator[None]:
    """Run a tracer while the block runs, from when it has said that it is attached.  Raises: CommandFailed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    try:
        for line in process.stdout or ():
            said.append(line.strip())
            if until in line:
                break
        else:
            raise CommandFailed(f"{command[0]}: {' '.join(said[-2:])}")
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=TOOL_ENDS_S)
        except subprocess.TimeoutExpired:  # bpftrace 0.17 waits for an event
            process.kill()
            process.communicate()


def bpftrace(filtered: str) -> list[str]:
    """Return the command that counts system calls by bpftrace, which needs tracefs: here in a mount namespace of its own."""
    script = f'BEGIN {{ printf("counting\\n"); }} tracepoint:raw_syscalls:sys_exit {filtered} {{ @[args->id] = count(); }}'
    mounted = 'mount -t tracefs none /sys/kernel/tracing && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mounted, "sh", "bpftrace", "-B", "line", "-e", script]


def find_tools() -> set[str]:
    """Return which tracers there are and work here, and say why another does not."""
    found = set()
    tries = {"strace": ["strace", "-c", "true"], "bpftrace": bpftrace("/pid == 1/")}
    for name, command in tries.items():
        if shutil.which(name) is None:
            print(f"without {name}: it is not installed (apt-get install {name})")
            continue
        try:
            if name == "bpftrace":
                with outside_tool(command, until="counting"):
                    pass
            else:
                subprocess.run(command, check=True, capture_output=True, timeout=WITHIN_S)
            found.add(name)
        except (CommandFailed, OSError, subprocess.SubprocessError) as error:
            print(f"without {name}: {error}")
    return found


def program_pid(client: Client, name: str) -> int:
    """Return the host's pid of a container's program: not of the small init above it."""
    return int(client.get(f"/v1/containers/{name}/top")[-1]["host_pid"])


Watch = Callable[[ExitStack], object]


def ways(client: Client, name: str, other: str, *, tools: set[str]) -> dict[str, Watch]:
    """Return how a container is watched, by each way."""
    pid = program_pid(client, name)
    found: dict[str, Watch] = {
        "counters": lambda stack: stack.enter_context(watched(client, name, "calls", stream="1")),
        "exact": lambda stack: stack.enter_context(watched(client, name, "calls", stream="1", exact="1")),
        "events": lambda stack: stack.enter_context(watched(client, name, "trace")),
        "beside": lambda stack: stack.enter_context(watched(client, other, "trace")),
    }
    commands = {
        "strace": (["strace", "-f", "-c", "-p", str(pid)], "attached"),
        "bpftrace": (bpftrace(f"/pid == {pid}/"), "counting"),
    }
    for tool in sorted(tools):
        command, until = commands[tool]
        found[tool] = lambda stack, command=command, until=until: stack.enter_context(  # type: ignore[misc]
            outside_tool(command, until=until)
        )
    return found


def slowdowns(
    work: Callable[[int], Spent], by: Mapping[str, Watch], *, units: int, pairs: int
) -> dict[str, Spent]:
    """Return how much longer a piece of work takes by each way, as a fraction of that unwatched."""
    work(units)
    found = {}
    for name, watch in by.items():
        size = {"strace": units // SLOWER, "counters": units * LONGER}.get(name, units)
        count = {"strace": SLOW_PAIRS, "counters": max(2, pairs // 2)}.get(name, pairs)
        plain: list[Spent] = []
        seen: list[Spent] = []
        for turn in range(count):
            for is_watched in (turn % 2 == 0, turn % 2 != 0):
                with ExitStack() as stack:
                    if is_watched:
                        watch(stack)
                    (seen if is_watched else plain).append(work(size))
        found[name] = Spent(*(round(low(new) / low(old) - 1, 4) for new, old in zip(
            zip(*seen, strict=True), zip(*plain, strict=True), strict=True)))  # fmt: skip
    return found


def low(samples: Sequence[float]) -> float:
    """Return the lower quartile."""
    return statistics.quantiles(samples, n=4, method="inclusive")[0]


def cpu_s(pid: int) -> float:
    """Return the processor time of a process's first thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def timed(pid: int, work: Callable[[int], float]) -> Callable[[int], Spent]:
    """Return the work, measured: `work` returns the seconds that it took."""

    def measured(units: int) -> Spent:
        before = cpu_s(pid)
        seconds = work(units)
        return Spent(seconds / units, (cpu_s(pid) - before) / units)

    return measured


def from_outside(outside: int, command: Sequence[str]) -> str:
    """Run a command where clients stand; returns what it printed."""
    words = ["nsenter", f"--net=/proc/self/fd/{outside}", *command]
    return subprocess.run(
        words, pass_fds=[outside], capture_output=True, text=True, timeout=WITHIN_S, check=True
    ).stdout


def redis_work(outside: int, units: int) -> float:
    """Ask redis-server; returns the seconds."""
    asked = ["redis-benchmark", "-h", ADDRESS, "-t", "get", "-n", str(units), "-c", "20", "--csv"]
    return units / float(from_outside(outside, asked).strip().splitlines()[-1].split(",")[1].strip('"'))


def most_told(client: Client, flood: Worker, **query: str) -> int:
    """Return the highest rate of events, per second, of which none is lost."""
    best = 0
    for rate in RATES:
        with watched(client, flood.name, "trace", **query) as reading:
            made, seconds = flood.tell(f"{rate} {FLOOD_S}").split()
            reached = int(int(made) / float(seconds))
            deadline = time.monotonic() + WITHIN_S
            while (
                not query.get("calls")
                and reading.told + reading.lost < int(made)
                and time.monotonic() < deadline
            ):
                select.select([], [], [], 0.02)
            select.select([], [], [], 0.5)  # what was lost last is told a moment later
        print(f"  events: {reached}/s, {reading.told} told, {reading.lost} lost of {made}", flush=True)
        if reading.lost:
            break
        best = max(best, reached)
        if reached < rate * 0.9:  # the flood can make no more
            break
    return best


def idle_share(world: World, client: Client, *, count: int) -> dict[str, float]:
    """Return the share of a processor that insulad uses beside so many containers at rest, uncounted and counted."""
    spec = {"image": "host", "command": ["sleep", "infinity"], "network": "none"}
    # The kernel gives a uid 200 keys (kernel.keys.maxkeys), and each container has a session keyring: several tenants.
    tenants = [{"tenant": f"idle{n}"} for n in range(-(-count // PER_TENANT))]
    made: list[tuple[str, dict[str, str]]] = []
    daemon = world.hosts["alpha"].daemon
    pid = daemon.pid if daemon else 0
    try:
        for n in range(count):
            query = tenants[n // PER_TENANT]
            made.append((client.call("POST", "/v1/containers", body=spec, query=query)["id"], query))
            client.call("POST", f"/v1/containers/{made[-1][0]}/start", query=query)
        alone = share_of(pid)
        reading = Reading(client.open("GET", "/v1/calls", query={"stream": "1", "tenant": "*"}))
        try:
            return {"idle_uncounted_share": alone, "idle_share": share_of(pid)}
        finally:
            reading.close()
    finally:
        for each, query in made:
            client.call("DELETE", f"/v1/containers/{each}", query={"force": "1", **query})


def share_of(pid: int) -> float:
    """Return the share of a processor that a process, all threads, uses for a while."""

    def used() -> float:
        return sum(
            int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
        )

    before, begun = used(), time.monotonic()
    select.select([], [], [], IDLE_S)
    return round((used() - before) / 1e9 / (time.monotonic() - begun), 4)


def start_workers(program: Path, socket: Path, stack: ExitStack) -> dict[str, Worker]:
    """Start the programs that work by hand."""
    texts = {
        "sqlite3": WORKER.format(prepare=SQLITE[0], work=SQLITE[1]),
        "getppid": WORKER.format(prepare=GETPPID[0], work=GETPPID[1]),
        "flood": FLOOD,
    }
    workers = {name: Worker(program, socket, name, text) for name, text in texts.items()}
    for worker in workers.values():
        stack.callback(worker.close)
        worker.read()
    return workers


def start_redis(client: Client, outside: int) -> None:
    """Start redis-server and wait until it answers: redis-benchmark spins for ever on a port that refuses."""
    spec = {"image": "host", "name": "redis", "network": "lan", "address": ADDRESS,
            "command": ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"]}  # fmt: skip
    client.call("POST", "/v1/containers", body=spec)
    client.call("POST", "/v1/containers/redis/start")
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        with suppress(subprocess.CalledProcessError):
            if "PONG" in from_outside(outside, ["redis-cli", "-h", ADDRESS, "ping"]):
                return
        select.select([], [], [], 0.05)
    raise CommandFailed("redis-server does not answer")


def measure(world: World, parts: Sequence[str], *, pairs: int, containers: int) -> dict[str, object]:
    """Return all facts of these parts."""
    host = world.hosts["alpha"]
    client = host.client()
    facts: dict[str, object] = {}
    if {"slower", "events"} & set(parts):
        with ExitStack() as stack:
            workers = start_workers(users.install_program(world.folder), host.socket, stack)
            if "slower" in parts:
                facts |= all_slowdowns(world, client, workers=workers, pairs=pairs)
            if "events" in parts:
                facts["events_told_per_s"] = most_told(client, workers["flood"], kinds="file")
    if "idle" in parts:
        facts |= idle_share(world, client, count=containers)
    return facts


def all_slowdowns(
    world: World, client: Client, *, workers: Mapping[str, Worker], pairs: int
) -> dict[str, object]:
    """Return how much slower each program is by each way, and print it."""
    facts: dict[str, object] = {}
    tools = find_tools()
    start_redis(client, world.outside)
    columns = ("counters", "exact", "events", "beside", "strace", "bpftrace")
    rows = [
        ("slower by (cpu)", "counted", "each call", "told", "beside one told", "strace -f -c", "bpftrace")
    ]
    works: dict[str, Callable[[int], float]] = {"redis": lambda units: redis_work(world.outside, units)}
    for name in ("sqlite3", "getppid"):
        works[name] = lambda units, worker=workers[name]: float(worker.tell(str(units)))  # type: ignore[misc]
    for name, work in works.items():
        pid = program_pid(client, name)
        os.sched_setaffinity(pid, FIRST_PROCESSOR)
        watches = ways(client, name, "flood", tools=tools)
        by = slowdowns(timed(pid, work), watches, units=ROUNDS[name], pairs=pairs)
        for way, value in by.items():
            facts |= {f"{name}_{way}": value.seconds, f"{name}_{way}_cpu": value.cpu_s}
        cells = (f"{by[way].seconds:+.1%} ({by[way].cpu_s:+.1%})" if way in by else "-" for way in columns)
        rows.append((name, *cells))  # type: ignore[arg-type]
    print("\n".join(align(rows)), flush=True)
    client.call("DELETE", "/v1/containers/redis", query={"force": "1"})
    return facts


def main() -> int:
    """Measure on one host that is made for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rounds of each way; 3 for a short look")
    parser.add_argument("--containers", type=int, default=500)
    parser.add_argument("--only", action="append", choices=PARTS, help="only that part; may be repeated")
    options = parser.parse_args()
    if check.refuse("bench"):
        return EXIT_MISSING
    with cleanup.alone("bench"), World(lans=(LAN,), names=("alpha",)) as world:
        try:
            users.make((), program=Path())
            world.start()
            world.create_networks()
            facts = measure(
                world, options.only or PARTS, pairs=max(2, options.pairs), containers=options.containers
            )
        except (CommandFailed, InsulaError, OSError, subprocess.SubprocessError) as error:
            print(f"bench: {error}\n{tail(world.hosts['alpha'])}", file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(())
    named = {
        "redis_counters_slowdown": facts.get("redis_counters"),
        "redis_events_slowdown": facts.get("redis_events"),
        "strace_slowdown": facts.get("redis_strace"),
        "events_per_s_no_loss": facts.get("events_told_per_s"),
        "idle_500_core_share": facts.get("idle_share") if options.containers == 500 else None,
    }
    print(bench_line({**named, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

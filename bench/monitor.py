# SPDX-License-Identifier: Apache-2.0
"""How much slower programs run while they are watched, beside strace and bpftrace, and how many events are told without loss.

    python bench/monitor.py [--turns N] [--containers N]

Three programs in containers: redis-server asked by redis-benchmark from outside, sqlite3 inserting rows, and a loop of
getppid(2), which is the worst case: nothing but system calls.  Each runs unwatched, counted (`/calls`), told of in full
(`/trace`), unwatched beside a container that is told of in full, and under `strace -f -c` and bpftrace's counting, in
turns.  Slow-downs are of the time that a fixed piece of work takes, medians of the turns' ratios to the unwatched turn
before.  Host, clients and bench share this machine's processors.

Exit codes: 0 measured; 1 something failed; 3 something is missing on this machine.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
REQUESTS = 60_000
IDLE_S = 15.0
FLOOD_S = 3.0
RATES = (25_000, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000)
WITHIN_S = 60.0

#: Does a piece of work for each line that it reads, and says how many seconds it took.
WORKER = """
import sys, time
{prepare}
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    {work}
    print(time.perf_counter() - begun, flush=True)
"""
GETPPID = ("import os; ask = os.getppid", "for _ in range(1_000_000): ask()")
SQLITE = (
    "import sqlite3; db = sqlite3.connect('/tmp/db', isolation_level=None); db.execute('create table t (a, b)')",
    "for n in range(2000): db.execute('insert into t values (?, ?)', (n, str(n)))",
)
FLOOD = """
import os, sys, time
for line in sys.stdin:
    rate, seconds = map(float, line.split())
    made, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        for _ in range(max(0, int(rate * spent) - made)):
            try: os.open("/none", 0)
            except OSError: pass
            made += 1
        time.sleep(0.001)
    print(made, time.perf_counter() - begun, flush=True)
"""


class Worker:
    """A program in a container that does a piece of work when it is told to."""

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

    def work(self) -> float:
        """Have the piece of work done; returns the seconds that it took."""
        return float(self.tell("go"))

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(WITHIN_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass
class Reading:
    """Reads a streamed answer to its end and throws it away, but for what was lost."""

    answer: Answer
    told: int = 0
    lost: int = 0
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._lines = self.answer.lines()
        next(self._lines)  # it has begun
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for line in self._lines:
                if line.startswith(b'{"type":"lost"'):
                    self.lost += int(json.loads(line)["events"])
                else:
                    self.told += 1
        except (InsulaError, OSError):  # hung up by `close`
            pass

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
    """Run a tracer while the block runs, from when it has said that it is attached."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout or ():
            if until in line:
                break
        yield
    finally:
        process.terminate()
        process.communicate(timeout=WITHIN_S)


def program_pid(client: Client, name: str) -> int:
    """Return the host's pid of a container's program: not of the small init above it."""
    return int(client.get(f"/v1/containers/{name}/top")[-1]["host_pid"])


def ways(client: Client, name: str, other: str) -> dict[str, Callable[[ExitStack], object]]:
    """Return how a container is watched, by each way."""
    found: dict[str, Callable[[ExitStack], object]] = {
        "counted": lambda stack: stack.enter_context(watched(client, name, "calls", stream="1")),
        "told": lambda stack: stack.enter_context(watched(client, name, "trace")),
        "beside": lambda stack: stack.enter_context(watched(client, other, "trace")),
    }
    if shutil.which("strace"):
        found["strace"] = lambda stack: stack.enter_context(
            outside_tool(["strace", "-f", "-c", "-p", str(program_pid(client, name))], until="attached")
        )
    if shutil.which("bpftrace"):
        script = "tracepoint:raw_syscalls:sys_exit /pid == {}/ {{ @[args->id] = count(); }}"
        found["bpftrace"] = lambda stack: stack.enter_context(
            outside_tool(["bpftrace", "-e", script.format(program_pid(client, name))], until="Attaching")
        )
    return found


def slowdowns(
    work: Callable[[], float], by: Mapping[str, Callable[[ExitStack], object]], *, turns: int
) -> dict[str, float]:
    """Return how much longer a piece of work takes by each way, as a fraction of the unwatched turn before."""
    ratios: dict[str, list[float]] = {name: [] for name in by}
    work()
    for _ in range(turns):
        for name, watch in by.items():
            plain = work()
            with ExitStack() as stack:
                watch(stack)
                ratios[name].append(work() / plain)
    return {name: round(statistics.median(each) - 1, 4) for name, each in ratios.items()}


def redis_work(outside: int) -> float:
    """Ask redis-server; returns the seconds of one request."""
    command = ["nsenter", f"--net=/proc/self/fd/{outside}", "redis-benchmark", "-h", ADDRESS, "-t", "get"]
    done = subprocess.run(
        [*command, "-n", str(REQUESTS), "-c", "20", "--csv"],
        pass_fds=[outside],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    return 1 / float(done.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))


def most_told(client: Client, flood: Worker, **query: str) -> int:
    """Return the highest rate of events, per second, of which none is lost."""
    best = 0
    for rate in RATES:
        with watched(client, flood.name, "trace", **query) as reading:
            made, seconds = map(float, flood.tell(f"{rate} {FLOOD_S}").split())
            client.get("/v1/version")
            time.sleep(0.5)  # what was lost last is told a moment later
        reached = int(made / seconds)
        print(f"  events: {reached}/s, {reading.lost} lost, {reading.told} told", flush=True)
        if reading.lost or reached < rate * 0.9:
            break
        best = reached
    return best


def idle_share(world: World, client: Client, *, count: int) -> float:
    """Return the share of a processor that insulad uses while it counts so many containers at rest."""
    spec = {"image": "host", "command": ["sleep", "infinity"], "network": "none"}
    made = [client.call("POST", "/v1/containers", body=spec)["id"] for _ in range(count)]
    for each in made:
        client.call("POST", f"/v1/containers/{each}/start")
    daemon = world.hosts["alpha"].daemon
    stat = Path(f"/proc/{daemon.pid if daemon else 0}/schedstat")
    reading = Reading(client.open("GET", "/v1/calls", query={"stream": "1"}))
    try:
        before, begun = int(stat.read_text().split()[0]), time.monotonic()
        time.sleep(IDLE_S)
        used = (int(stat.read_text().split()[0]) - before) / 1e9
        return round(used / (time.monotonic() - begun), 4)
    finally:
        reading.close()
        for each in made:
            client.call("DELETE", f"/v1/containers/{each}", query={"force": "1"})


def measure(world: World, *, turns: int, containers: int) -> dict[str, object]:
    """Return all facts."""
    host = world.hosts["alpha"]
    client, program = host.client(), users.install_program(world.folder)
    facts: dict[str, object] = {}
    rows = [("slower by", "counted", "told", "beside one told", "strace -f -c", "bpftrace")]
    with ExitStack() as stack:
        texts = {"getppid": GETPPID, "sqlite3": SQLITE}
        workers = {
            name: Worker(program, host.socket, name, WORKER.format(prepare=prepare, work=work))
            for name, (prepare, work) in texts.items()
        }
        workers["flood"] = Worker(
            program, host.socket, "flood", FLOOD.replace("for line", "print('ready')\nfor line", 1)
        )
        for worker in workers.values():
            stack.callback(worker.close)
            worker.read()
        spec = {"image": "host", "name": "redis", "network": "lan", "address": ADDRESS,
                "command": ["redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"]}  # fmt: skip
        client.call("POST", "/v1/containers", body=spec)
        client.call("POST", "/v1/containers/redis/start")
        works: dict[str, Callable[[], float]] = {
            "redis": lambda: redis_work(world.outside),
            "sqlite3": workers["sqlite3"].work,
            "getppid": workers["getppid"].work,
        }
        for name, work in works.items():
            by = slowdowns(work, ways(client, name, "flood"), turns=turns)
            facts |= {f"{name}_{way}": value for way, value in by.items()}
            words = [
                f"{by[way]:+.1%}" if way in by else "-"
                for way in ("counted", "told", "beside", "strace", "bpftrace")
            ]
            rows.append((name, *words))
            print("\n".join(align(rows)), flush=True)
        facts["events_looked_at_per_s"] = most_told(client, workers["flood"], kinds="file", calls="unlink")
        facts["events_told_per_s"] = most_told(client, workers["flood"], kinds="file")
        client.call("DELETE", "/v1/containers/redis", query={"force": "1"})
    facts["idle_share"] = idle_share(world, client, count=containers)
    return facts


def main() -> int:
    """Measure on one host that is made for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--containers", type=int, default=500)
    options = parser.parse_args()
    if check.refuse("bench"):
        return EXIT_MISSING
    with cleanup.alone("bench"), World(lans=(LAN,), names=("alpha",)) as world:
        try:
            users.make((), program=Path())
            world.start()
            world.create_networks()
            facts = measure(world, turns=options.turns, containers=options.containers)
        except (CommandFailed, InsulaError, OSError, subprocess.SubprocessError) as error:
            print(f"bench: {error}\n{tail(world.hosts['alpha'])}", file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(())
    named = {
        "redis_counters_slowdown": facts.get("redis_counted"),
        "redis_events_slowdown": facts.get("redis_told"),
        "strace_slowdown": facts.get("redis_strace"),
        "events_per_s_no_loss": facts.get("events_looked_at_per_s"),
        "idle_500_core_share": facts.get("idle_share") if options.containers == 500 else None,
    }
    print(bench_line({**named, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

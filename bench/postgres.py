# SPDX-License-Identifier: Apache-2.0
"""The longest silence that eight PostgreSQL clients see while their server moves: shared memory, many processes, a disk.

128 MB of shared buffers, filled; `pgbench` writes through the network all the time, back and forth.  Its own log of
transactions tells when each ended, so that the gap is what no transaction ended in.

    python bench/postgres.py [MOVES]

Exit codes: 0 measured; 1 a transaction failed or a move did; 3 something is missing on this machine.
"""

import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup, users
from demo.hosts import Host, Lan, World, inside, tail
from demo.report import align
from demo.users import CommandFailed

from bench.figures import bench_line
from bench.moving import phases_of
from insula.client import operations
from insula.client.http import Client
from insula.model.errors import InsulaError

MOVES = 6
CLIENTS = 8
SCALE = 7
"""About 110 MB of tables, all in the shared buffers, which are hardly larger."""
SETTLE_S = 1.0
READY_S = 60.0
WORDS = 6
"""Of a line of the log; the last one may be cut short."""
MAX_PAUSE_MS = 2000
LAN = Lan(name="lan1", tenant="root", prefix="10.99.1")
ADDRESS = LAN.address(10)
PROGRAMS = Path("/usr/lib/postgresql")
SCRIPT = """
set -e
mkdir -p /var/run/postgresql /srv/pg
chown postgres /var/run/postgresql /srv/pg
as='setpriv --reuid=postgres --regid=postgres --clear-groups'
cd /srv/pg
$as BIN/initdb -D /srv/pg/data --auth=trust --no-sync > /dev/null
echo 'host all all 0.0.0.0/0 trust' >> /srv/pg/data/pg_hba.conf
exec $as BIN/postgres -D /srv/pg/data -c listen_addresses='*' -c shared_buffers=128MB
"""
EXIT_FAILED, EXIT_MISSING = 1, 3


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One move: between which times, and what its host told."""

    began: float
    ended: float
    result: Mapping[str, object]


def newest_programs() -> Path | None:
    """Return the folder of PostgreSQL's own programs, None if it is not installed."""
    found = sorted(PROGRAMS.glob("*/bin/postgres"))
    return found[-1].parent if found else None


def start_server(client: Client, programs: Path) -> None:
    """Start the server that is moved."""
    spec = {
        "image": "host",
        "name": "postgres",
        "command": ("sh", "-c", SCRIPT.replace("BIN", str(programs))),
        "network": "lan",
        "address": ADDRESS,
    }
    made = client.call("POST", "/v1/containers", body=spec)
    client.call("POST", f"/v1/containers/{made['id']}/start")


def words_of(programs: Path, *words: str) -> list[str]:
    """Return a command of the clients' side."""
    return [str(programs / "pgbench"), "-h", ADDRESS, "-U", "postgres", *words, "postgres"]


def fill(world: World, programs: Path) -> None:
    """Make the tables, as soon as the server answers.  Raises: CommandFailed."""
    ready = [str(programs / "pg_isready"), "-q", "-h", ADDRESS, "-U", "postgres"]
    deadline = time.monotonic() + READY_S
    while subprocess.run(inside(world.outside, *ready), check=False).returncode:
        if time.monotonic() > deadline:
            raise CommandFailed("the server does not answer")
        select.select([], [], [], 0.1)
    made = subprocess.run(
        inside(world.outside, *words_of(programs, "-i", "-q", "-s", str(SCALE))),
        check=False,
        capture_output=True,
    )
    if made.returncode:
        raise CommandFailed(f"the tables cannot be made: {made.stderr.decode(errors='replace')[-300:]}")


def move(client: Client, target: str) -> Moved:
    """Carry the server to another host.  Raises: InsulaError."""
    began = time.time()
    wish = {"target": target, "max_pause_ms": MAX_PAUSE_MS}
    last = client.call("POST", "/v1/containers/postgres/migrate", body=wish)
    for record in operations.follow(client, last):
        last = record
    error = operations.failure(last)
    if error is not None:
        raise error
    return Moved(began=began, ended=time.time(), result=dict(last["result"]))


def longest_gap_ms(ends: Iterable[float], *, began: float, ended: float) -> float:
    """Return the longest time in which no transaction ended, of those that touch the move.  Pure."""
    gap, last = 0.0, None
    for each in sorted(ends):
        if last is not None and each >= began and last <= ended + SETTLE_S:
            gap = max(gap, each - last)
        last = each
    return gap * 1000


def ends_of(folder: Path) -> list[float]:
    """Return when each transaction ended, by pgbench's logs: client, number, duration, script, seconds, microseconds."""
    lines = (line.split() for path in folder.glob("log.*") for line in path.read_text().splitlines())
    return [int(words[4]) + int(words[5]) / 1e6 for words in lines if len(words) == WORDS]


def measure(world: World, programs: Path, *, moves: int) -> tuple[list[Moved], list[float], int]:
    """Move back and forth under load; returns the moves, the ends of all transactions, how many failed."""
    start_server(world.hosts["alpha"].client(), programs)
    fill(world, programs)
    with tempfile.TemporaryDirectory() as name:
        load = subprocess.Popen(
            inside(
                world.outside,
                *words_of(programs, "-n", "-c", str(CLIENTS), "-T", "3600", "-l", f"--log-prefix={name}/log"),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        done = []
        hosts = list(world.hosts.values())
        select.select([], [], [], 3 * SETTLE_S)
        try:
            for number in range(moves):
                done.append(_move_once(hosts[number % 2], hosts[(number + 1) % 2]))
        finally:
            failed = _end(load)
        return done, ends_of(Path(name)), failed


def _move_once(source: Host, target: Host) -> Moved:
    moved = move(source.client(), target.name)
    select.select([], [], [], SETTLE_S)
    told = {name: value for name, value in moved.result.items() if name != "target"}
    print(f"move to {target.name}: {told}", flush=True)
    return moved


def _end(load: subprocess.Popen[bytes]) -> int:
    """Interrupt pgbench, unless it ended by itself.  Returns: how many of its clients gave up."""
    gone = load.poll() is not None
    load.terminate()
    output, _ = load.communicate()
    text = output.decode(errors="replace")
    failed = len(re.findall(r"aborted|FATAL|PANIC|could not", text))
    if gone or failed:
        print(f"bench: pgbench said: {text[-2000:]}", flush=True)
    return failed + gone


def report(moves: list[Moved], ends: list[float], *, failed: int) -> str:
    """Return the table and the last line."""
    gaps = [longest_gap_ms(ends, began=each.began, ended=each.ended) for each in moves]
    frozen = [float(str(each.result["frozen_ms"])) for each in moves]
    phases = [phases_of(each.result) for each in moves]
    names = list(dict.fromkeys(name for each in phases for name in each))
    medians = {name: statistics.median(each.get(name, 0.0) for each in phases) for name in names}
    rows = [("phase", "median ms"), *((name, f"{value:.1f}") for name, value in medians.items())]
    facts = {
        "pg_moves": len(moves),
        "pg_transactions": len(ends),
        "pg_failed": failed,
        "pg_frozen_p50_ms": round(statistics.median(frozen), 1),
        "pg_frozen_max_ms": round(max(frozen), 1),
        "pg_gap_p50_ms": round(statistics.median(gaps), 1),
        "pg_gap_max_ms": round(max(gaps), 1),
    }
    return "\n".join([*align(rows), bench_line(facts)])


def main(words: list[str]) -> int:
    """Measure on two hosts that are made for it."""
    if check.refuse("bench"):
        return EXIT_MISSING
    programs = newest_programs()
    if programs is None:
        print("bench: PostgreSQL is not installed: apt-get install postgresql", file=sys.stderr)
        return EXIT_MISSING
    moves = int(words[0]) if words else MOVES
    with cleanup.alone("bench"), World(lans=(LAN,)) as world:
        try:
            users.make((), program=Path())
            world.start()
            world.pair("alpha", "beta")
            world.create_networks()
            done, ends, failed = measure(world, programs, moves=moves)
        except (CommandFailed, InsulaError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            for host in world.hosts.values():
                print(tail(host), file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(())
    print(report(done, ends, failed=failed))
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

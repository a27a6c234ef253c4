# SPDX-License-Identifier: Apache-2.0
"""The longest silence that a Redis client sees while its server moves: 100 MB, under load, back and forth.

The two hosts, the client and the counting are the demo's (`demo/hosts.py`, `demo/load.py`).

    python bench/migrate.py [MOVES]

Exit codes: 0 measured; 1 a request failed or a move did; 3 something is missing on this machine.
"""

import select
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup, users
from demo.clients import LoadClient
from demo.hosts import Host, Lan, World, tail
from demo.report import align
from demo.users import CommandFailed

from bench.figures import bench_line
from insula.client import operations
from insula.client.http import Client
from insula.model.errors import InsulaError
from insula.model.migration import Phase

MOVES = 10
REDIS_MB = 100
SETTLE_S = 0.5
LAN = Lan(name="lan1", tenant="root", prefix="10.99.1")
ADDRESS = LAN.address(10)
COMMAND = ("redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no")
EXIT_FAILED, EXIT_MISSING = 1, 3


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One move as its client and its host saw it."""

    gap_ms: float
    frozen_ms: float
    moved_mb: float
    phases_ms: Mapping[str, float]


def start_redis(client: Client) -> None:
    """Start the server that is moved."""
    spec = {"image": "host", "name": "redis", "command": COMMAND, "network": "lan", "address": ADDRESS}
    made = client.call("POST", "/v1/containers", body=spec)
    client.call("POST", f"/v1/containers/{made['id']}/start")


def move(client: Client, target: str) -> Mapping[str, object]:
    """Carry Redis to another host; returns the operation's result.  Raises: InsulaError."""
    last = client.call("POST", "/v1/containers/redis/migrate", body={"target": target})
    for record in operations.follow(client, last):
        last = record
    error = operations.failure(last)
    if error is not None:
        raise error
    return dict(last["result"])


def measure(world: World, *, moves: int) -> tuple[list[Moved], int]:
    """Move back and forth under load; returns the moves, and how many requests failed or were lost."""
    start_redis(world.hosts["alpha"].client())
    load = LoadClient("redis", ADDRESS, port=6379, network=world.outside, megabytes=REDIS_MB)
    load.wait_ready()
    done: list[Moved] = []
    hosts = list(world.hosts.values())
    for number in range(moves):
        source, target = hosts[number % 2], hosts[(number + 1) % 2]
        done.append(_move_once(load, source, target=target.name))
        last = done[-1]
        print(
            f"move {number + 1} to {target.name}: gap {last.gap_ms:.0f} ms, frozen {last.frozen_ms:.0f} ms,"
            f" {last.moved_mb:.1f} MB",
            flush=True,
        )
    outcome = load.finish()
    if outcome.reason:
        print(f"bench: the client saw: {outcome.reason}", flush=True)
    return done, outcome.failed + outcome.lost


def _move_once(load: LoadClient, source: Host, *, target: str) -> Moved:
    select.select([], [], [], SETTLE_S)
    load.take_gap_ms()
    result = move(source.client(), target)
    select.select([], [], [], SETTLE_S)
    return Moved(
        gap_ms=load.take_gap_ms(),
        frozen_ms=float(str(result["frozen_ms"])),
        moved_mb=int(str(result["moved_bytes"])) / 1e6,
        phases_ms=phases_of(result),
    )


def phases_of(result: Mapping[str, object]) -> dict[str, float]:
    """Return the milliseconds of each phase that a move's result tells."""
    told = {phase.value: result.get(f"{phase.value}_ms") for phase in Phase}
    return {name: float(str(value)) for name, value in told.items() if value is not None}


def report(moves: list[Moved], *, failed: int) -> str:
    """Return the table of phases and the last line."""
    gaps = [each.gap_ms for each in moves]
    names = list(dict.fromkeys(name for each in moves for name in each.phases_ms))
    phases = {
        name: round(statistics.median([each.phases_ms.get(name, 0.0) for each in moves]), 1) for name in names
    }
    rows = [("phase", "median ms"), *((name, f"{value:.1f}") for name, value in phases.items())]
    facts = {
        "gap_p50_ms": round(statistics.median(gaps), 1),
        "gap_max_ms": round(max(gaps), 1),
        "moves": len(moves),
        "failed": failed,
        "phases_ms": phases,
    }
    return "\n".join([*align(rows), bench_line(facts)])


def main(words: list[str]) -> int:
    """Measure on two hosts that are made for it."""
    if check.refuse("bench"):
        return EXIT_MISSING
    moves = int(words[0]) if words else MOVES
    with cleanup.alone("bench"), World(lans=(LAN,)) as world:
        try:
            users.make((), program=Path())
            world.start()
            world.pair("alpha", "beta")
            world.create_networks()
            done, failed = measure(world, moves=moves)
        except (CommandFailed, InsulaError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            for host in world.hosts.values():
                print(tail(host), file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(())
    print(report(done, failed=failed))
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

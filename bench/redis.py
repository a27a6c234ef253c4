# SPDX-License-Identifier: Apache-2.0
"""The longest silence that a Redis client sees while its server moves under load, back and forth.

Two loads: 100 MB, asked at full rate; 2 GB of which 20 MB a second are rewritten at random places beside that.
"""

from dataclasses import dataclass

from demo.clients import LoadClient
from demo.hosts import World
from demo.load import Outcome

from bench.moving import (
    ADDRESS,
    Found,
    Goal,
    Moved,
    Row,
    median,
    median_phases,
    most,
    move_under_load,
    two_hosts,
)
from insula.client.http import Client

COMMAND = ("redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no")
PORT = 6379
NAME = "redis"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How large the server is and what is asked of it."""

    words: str
    megabytes: int
    moves: int
    settle_s: float
    """Before and after each move: what comes late counts, too."""
    goal: Goal
    rewritten_mb_s: float = 0.0
    max_pause_ms: int | None = None


def small(*, megabytes: int, moves: int) -> Load:
    """Return the load of 100 MB."""
    goal = Goal(p50_ms=50, max_ms=120)
    words = f"Redis {megabytes} MB"
    return Load(words=words, megabytes=megabytes, moves=moves, settle_s=0.5, goal=goal)


def large(*, megabytes: int, moves: int) -> Load:
    """Return the load of 2 GB.  The longer pause that is allowed has nothing refused on a slow day."""
    return Load(
        words=f"Redis {megabytes} MB, 20 MB/s rewritten",
        megabytes=megabytes,
        moves=moves,
        settle_s=2.0,
        goal=Goal(p50_ms=100),
        rewritten_mb_s=20.0,
        max_pause_ms=2000,
    )


def start(client: Client) -> None:
    """Start the server that is moved."""
    spec = {"image": "host", "name": NAME, "command": COMMAND, "network": "lan", "address": ADDRESS}
    made = client.call("POST", "/v1/containers", body=spec)
    client.call("POST", f"/v1/containers/{made['id']}/start")


def measure(world: World, load: Load) -> tuple[list[Moved], Outcome]:
    """Move back and forth under load; returns the moves and what the client saw."""
    start(world.hosts["alpha"].client())
    client = LoadClient(
        "redis",
        ADDRESS,
        port=PORT,
        network=world.outside,
        megabytes=load.megabytes,
        rewritten_mb_s=load.rewritten_mb_s,
    )
    client.wait_ready()
    done = []
    hosts = list(world.hosts.values())
    for number in range(load.moves):
        source, target = hosts[number % 2], hosts[(number + 1) % 2].name
        last = move_under_load(
            client,
            source,
            name=NAME,
            target=target,
            settle_s=load.settle_s,
            max_pause_ms=load.max_pause_ms,
        )
        done.append(last)
        print(
            f"move {number + 1} to {target}: gap {last.gap_ms:.0f} ms, frozen {last.frozen_ms:.0f} ms,"
            f" {last.moved_mb:.1f} MB",
            flush=True,
        )
    outcome = client.finish()
    if outcome.reason:
        print(f"bench: the client saw: {outcome.reason}", flush=True)
    if load.rewritten_mb_s:
        print(f"rewritten: {outcome.rewritten_mb / outcome.seconds:.1f} MB/s", flush=True)
    return done, outcome


def row(load: Load, moves: list[Moved], *, failed: int) -> Row:
    """Return the load's line."""
    return Row(
        load=load.words,
        gaps_ms=[each.gap_ms for each in moves],
        frozen_ms=[each.frozen_ms for each in moves],
        moved_mb=[each.moved_mb for each in moves],
        failed=failed,
        goal=load.goal,
    )


def facts(prefix: str, moves: list[Moved]) -> dict[str, object]:
    """Return a load's facts for machines."""
    return {
        f"{prefix}_gap_p50_ms": median([each.gap_ms for each in moves]),
        f"{prefix}_gap_max_ms": most([each.gap_ms for each in moves]),
        f"{prefix}_frozen_p50_ms": median([each.frozen_ms for each in moves]),
        f"{prefix}_moved_mb": median([each.moved_mb for each in moves]),
        f"{prefix}_moves": len(moves),
    }


def run_small(load: Load) -> Found:
    """Measure the load of 100 MB; the facts have the names of older runs, too."""
    with two_hosts() as world:
        moves, outcome = measure(world, load)
    told = facts("redis100", moves)
    older = {
        "gap_p50_ms": told["redis100_gap_p50_ms"],
        "gap_max_ms": told["redis100_gap_max_ms"],
        "moves": len(moves),
        "phases_ms": median_phases(moves),
    }
    return Found(rows=[row(load, moves, failed=outcome.failed + outcome.lost)], facts={**older, **told})


def run_large(load: Load) -> Found:
    """Measure the load of 2 GB."""
    with two_hosts() as world:
        moves, outcome = measure(world, load)
    told = {**facts("redis2g", moves), "redis2g_phases_ms": median_phases(moves)}
    return Found(rows=[row(load, moves, failed=outcome.failed + outcome.lost)], facts=told)

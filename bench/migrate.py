# SPDX-License-Identifier: Apache-2.0
"""The longest silence that clients see while their servers move between two hosts, beside podman and plain CRIU.

    python bench/migrate.py [PART…] [--moves N] [--quick]

Parts (all by default): redis100, redis2g, postgres, small200, tracking, podman, criu.  `--moves`: of each load.  `--quick`:
small sizes, to see that it works; the figures mean nothing then.  SMALL=N in the environment: so many small containers.
Both hosts, their clients and the bench share this machine's processors.

Exit codes: 0 measured; 1 a request failed, a move did, or a part could not be measured to its end; 3 something is missing
on this machine; 130 after ctrl-c.
"""

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup

from bench import moving, plain, postgres, redis, small, track
from bench.figures import bench_line, ratio
from bench.moving import Found, Goal, PartFailed, PartMissing, Row
from insula.migrate.track import open_tracker
from insula.model.errors import InsulaError

EXIT_FAILED, EXIT_MISSING, EXIT_INTERRUPTED = 1, 3, 130
SHARED = "both hosts, their clients and this bench share this machine's {} processors"
PODMAN_GOAL = 0.1
#: What the last line says in any case; null: not run, or missing here.
FACTS = (
    "redis100_gap_p50_ms",
    "redis100_gap_max_ms",
    "redis100_vs_podman",
    "redis100_vs_criu",
    "redis2g_gap_p50_ms",
    "pg_failed",
    "pg_gap_max_ms",
    "small200_gap_max_ms",
    "tracking_slowdown",
    "podman_gap_p50_ms",
    "criu_gap_p50_ms",
    "gap_p50_ms",
    "gap_max_ms",
    "moves",
    "phases_ms",
)


class Part(StrEnum):
    """What can be measured alone."""

    REDIS100 = "redis100"
    REDIS2G = "redis2g"
    POSTGRES = "postgres"
    SMALL200 = "small200"
    TRACKING = "tracking"
    PODMAN = "podman"
    CRIU = "criu"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    redis_mb: int = 100
    redis_moves: int = 20
    large_mb: int = 2000
    large_moves: int = 6
    postgres_moves: int = 6
    small: int = 200
    tracking_turns: int = 8
    peer_turns: int = 5


QUICK = Sizes(
    redis_mb=10,
    redis_moves=2,
    large_mb=100,
    large_moves=2,
    postgres_moves=2,
    small=8,
    tracking_turns=1,
    peer_turns=2,
)


def measure_postgres(moves: int) -> Found:
    """Have PostgreSQL moved under pgbench.  Raises: PartFailed, PartMissing."""
    programs = postgres.newest_programs()
    if programs is None:
        raise PartMissing("PostgreSQL: apt-get install postgresql")
    with moving.two_hosts() as world:
        done, ends, failed = postgres.measure(world, programs, moves=moves)
    gaps = [postgres.longest_gap_ms(ends, began=each.began, ended=each.ended) for each in done]
    row = Row(
        load="PostgreSQL, pgbench -c 8",
        gaps_ms=gaps,
        frozen_ms=[float(str(each.result["frozen_ms"])) for each in done],
        moved_mb=[int(str(each.result["moved_bytes"])) / 1e6 for each in done],
        failed=failed,
        goal=Goal(max_ms=200),
    )
    facts = {
        "pg_failed": failed,
        "pg_gap_p50_ms": moving.median(gaps),
        "pg_gap_max_ms": moving.most(gaps),
        "pg_frozen_p50_ms": moving.median(row.frozen_ms),
        "pg_moved_mb": moving.median(row.moved_mb),
        "pg_moves": len(done),
        "pg_transactions": len(ends),
    }
    return Found(rows=[row], facts=facts)


def measure_tracking(turns: int) -> Found:
    """Measure how much slower a tracked program writes.  Raises: PartMissing."""
    with closing(open_tracker(tuple)) as tracker:
        if tracker.kind != "userfaultfd":
            raise PartMissing("userfaultfd WP_ASYNC")
    cost = track.measure(track.HASHES["heavy"], turns)
    slowdown = round(cost.slowdown, 4)
    words = f"writer of {cost.written_mb_s:.0f} MB/s, tracked"
    row = Row(load=words, slowdown=slowdown, goal=Goal(slowdown=0.05))
    return Found(rows=[row], facts={"tracking_slowdown": slowdown})


def makers(sizes: Sizes) -> dict[Part, Callable[[], Found]]:
    """Return how each part is measured."""
    return {
        Part.REDIS100: lambda: redis.run_small(
            redis.small(megabytes=sizes.redis_mb, moves=sizes.redis_moves)
        ),
        Part.REDIS2G: lambda: redis.run_large(redis.large(megabytes=sizes.large_mb, moves=sizes.large_moves)),
        Part.POSTGRES: lambda: measure_postgres(sizes.postgres_moves),
        Part.SMALL200: lambda: small.run(count=sizes.small),
        Part.TRACKING: lambda: measure_tracking(sizes.tracking_turns),
        Part.PODMAN: lambda: plain.run_podman(megabytes=sizes.redis_mb, turns=sizes.peer_turns),
        Part.CRIU: lambda: plain.run_criu(megabytes=sizes.redis_mb, turns=sizes.peer_turns),
    }


@dataclass(kw_only=True)
class Whole:
    """All parts that ran, and a line for each that did not."""

    found: dict[Part, Found]
    lines: list[str]
    failed_parts: int = 0


def measure(parts: Sequence[Part], sizes: Sizes) -> Whole:
    """Measure parts one after the other; one that fails does not hold up the others."""
    whole = Whole(found={}, lines=[])
    for part, make in makers(sizes).items():
        if part not in parts:
            whole.lines.append(f"{part}: not run")
            continue
        print(f"-- {part}", flush=True)
        began = time.monotonic()
        try:
            whole.found[part] = make()
        except PartMissing as error:
            whole.lines.append(f"{part}: missing here: {error}")
        except (PartFailed, InsulaError, OSError) as error:
            whole.failed_parts += 1
            whole.lines.append(f"{part}: FAILED: {error}")
        print(f"-- {part} took {time.monotonic() - began:.0f} s", flush=True)
    return whole


def facts_of(whole: Whole) -> dict[str, object]:
    """Return everything for the last line; null where nothing was measured.  Pure."""
    facts: dict[str, object] = dict.fromkeys(FACTS)
    for found in whole.found.values():
        facts.update(found.facts)
    ours = _gap(whole, Part.REDIS100)
    if ours is not None:
        facts["redis100_vs_podman"] = ratio(ours, _gap(whole, Part.PODMAN))
        facts["redis100_vs_criu"] = ratio(ours, _gap(whole, Part.CRIU))
    rows = [row for found in whole.found.values() for row in found.rows]
    facts["failed"] = sum(row.failed for row in rows if not row.is_peer)
    facts["failed_parts"] = whole.failed_parts
    return facts


def _gap(whole: Whole, part: Part) -> float | None:
    """Return a part's median gap, unrounded: ratios are made of it."""
    if part not in whole.found:
        return None
    gaps = whole.found[part].rows[0].gaps_ms
    return statistics.median(gaps) if gaps else None


def report(whole: Whole, facts: Mapping[str, object]) -> str:
    """Return the table, what there is to say, and the last line.  Pure but for the number of processors."""
    rows = [row for found in whole.found.values() for row in found.rows]
    lines = [*moving.table(rows), *whole.lines]
    phases = facts["phases_ms"]
    if isinstance(phases, Mapping):
        told = ", ".join(f"{name} {value}" for name, value in phases.items())
        lines.append(f"phases of redis100, median ms: {told}")
    versus = facts["redis100_vs_podman"]
    if isinstance(versus, float):
        met = "met" if versus <= PODMAN_GOAL else "NOT met"
        lines.append(f"redis100 ÷ podman: {versus} (goal <= {PODMAN_GOAL}: {met}); podman copies on one host")
    return "\n".join([*lines, SHARED.format(os.cpu_count()), bench_line(facts)])


def sizes_of(options: argparse.Namespace, *, small_count: str) -> Sizes:
    """Return the sizes that were asked for.  Raises: ValueError if a number is none."""
    sizes = QUICK if options.quick else Sizes()
    if options.moves:
        sizes = replace(
            sizes, redis_moves=options.moves, large_moves=options.moves, postgres_moves=options.moves
        )
    return replace(sizes, small=int(small_count)) if small_count else sizes


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the words of the command line."""
    parser = argparse.ArgumentParser(prog="bench/migrate.py", description="measure what clients see of moves")
    parser.add_argument("parts", nargs="*", type=Part, metavar="PART", help=", ".join(Part))
    parser.add_argument("--moves", type=int, default=0, help="of each load")
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean nothing")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Measure the parts that are asked for."""
    options = parse(words)
    sizes = sizes_of(options, small_count=os.environ.get("SMALL", ""))
    if check.refuse("bench"):
        return EXIT_MISSING
    # A termination takes the same way out as ctrl-c: through everything that cleans up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with cleanup.alone("bench"):
        whole = measure(options.parts or list(Part), sizes)
    facts = {**facts_of(whole), "is_quick": options.quick}
    print(report(whole, facts))
    return EXIT_FAILED if facts["failed"] or whole.failed_parts else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)

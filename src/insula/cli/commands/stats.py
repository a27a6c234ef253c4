# SPDX-License-Identifier: Apache-2.0
"""`insula stats`: CPU, memory, processes and traffic of running containers, once a second or once."""

from __future__ import annotations

import json
import sys

from insula.cli.render import Column, add_options, short, show, table, terminal_width
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from insula.client.http import Client, Json

HELP = "show CPU, memory and traffic of containers"
HOME_AND_CLEAR = "\x1b[H\x1b[J"


def _limit(count: int | None) -> str:
    return "-" if count is None else format_size(count)


COLUMNS = (
    Column("CONTAINER ID", lambda row: short(row["id"]), shrink=1),
    Column("NAME", lambda row: str(row["name"]), shrink=2),
    Column("CPU %", lambda row: "-" if row["cpu_percent"] is None else f"{row['cpu_percent']:.1f}%"),
    Column(
        "MEM / LIMIT",
        lambda row: f"{format_size(row['memory_bytes'])} / {_limit(row.get('memory_limit_bytes'))}",
    ),
    Column(
        "NET IN / OUT", lambda row: f"{format_size(row['received_bytes'])} / {format_size(row['sent_bytes'])}"
    ),
    Column(
        "READ / WRITTEN",
        lambda row: f"{format_size(row['read_bytes'])} / {format_size(row['written_bytes'])}",
    ),
    Column("PIDS", lambda row: str(row["pids"])),
)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-stream", action="store_true", help="print once (it takes a second to measure CPU)"
    )
    add_options(parser)
    parser.add_argument(
        "containers", metavar="CONTAINER", nargs="*", help="name or id (default: all running ones)"
    )


def run(options: Namespace, client: Client) -> int:
    before: dict[str, Json] = {}
    wanted = {client.get(f"/v1/containers/{quote(name)}")["id"] for name in options.containers}
    is_live = options.format == "table" and sys.stdout.isatty() and not options.no_stream
    for number, samples in enumerate(_samples(client)):
        rows = [with_cpu(row, before.get(row["id"])) for row in samples if not wanted or row["id"] in wanted]
        before = {row["id"]: row for row in rows}
        if options.no_stream and number == 0 and rows:
            continue
        if is_live:
            print(HOME_AND_CLEAR + "\n".join(table(rows, COLUMNS, width=terminal_width())), flush=True)
        elif options.format == "json" and not options.no_stream:
            print(json.dumps(rows), flush=True)
        else:
            show(rows, COLUMNS, options=options)
            sys.stdout.flush()
        if options.no_stream:
            break
    return 0


def _samples(client: Client) -> Iterator[list[Json]]:
    yield from client.follow("/v1/stats", {"stream": "1"})


def with_cpu(row: Json, before: Json | None) -> Json:
    """Return the sample with `cpu_percent` since the one before; 100 is one whole CPU."""
    seconds = row["sampled_at"] - before["sampled_at"] if before else 0.0
    used = (row["cpu_usage_us"] - before["cpu_usage_us"]) / 1e6 if before else 0.0
    return {**row, "cpu_percent": round(100 * max(0.0, used) / seconds, 2) if seconds > 0 else None}

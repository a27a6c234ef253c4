# SPDX-License-Identifier: Apache-2.0
"""`insula stats`: what running containers use, once a second or once, or what all have used in the last minutes."""

from __future__ import annotations

import json
import sys

from insula.cli.parser import UsageError
from insula.cli.render import Column, add_options, short, show, table, terminal_width
from insula.client.http import quote
from insula.model.units import format_duration, format_size, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from insula.client.http import Client, Json

HELP = "show CPU, memory, pressure and traffic of containers"
HOME_AND_CLEAR = "\x1b[H\x1b[J"
KEPT_S = 3600.0
"""As `model/history.py` says, which costs too much to import."""
WAITS = ("cpu", "memory", "io")


def _limit(count: int | None) -> str:
    return "-" if count is None else format_size(count)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}%"


def _pressure(row: Json) -> str:
    return " / ".join(_percent(row[f"{what}_wait_percent"]) for what in WAITS)


_ID = Column("CONTAINER ID", lambda row: short(row["id"]), spare=True)
_NAME = Column("NAME", lambda row: str(row["name"]), shrink=2)
_PRESSURE = Column("WAIT CPU / MEM / IO", _pressure, spare=True)
_OWN_DISK = Column(
    "DISK / LIMIT",
    lambda row: (
        "-"
        if row.get("disk_bytes") is None
        else f"{format_size(row['disk_bytes'])} / {_limit(row.get('disk_limit_bytes'))}"
    ),
)
_NET = Column(
    "NET IN / OUT", lambda row: f"{format_size(row['received_bytes'])} / {format_size(row['sent_bytes'])}"
)
_DISK = Column(
    "READ / WRITTEN", lambda row: f"{format_size(row['read_bytes'])} / {format_size(row['written_bytes'])}"
)
COLUMNS = (
    _ID,
    _NAME,
    Column("CPU %", lambda row: _percent(row["cpu_percent"])),
    Column(
        "MEM / LIMIT",
        lambda row: f"{format_size(row['memory_bytes'])} / {_limit(row.get('memory_limit_bytes'))}",
    ),
    _PRESSURE,
    _NET,
    _DISK,
    Column("PIDS", lambda row: str(row["pids"])),
)
PAST_COLUMNS = (
    _NAME,
    Column("OVER", lambda row: format_duration(row["seconds"]), spare=True),
    Column("CPU / PEAK", lambda row: f"{_percent(row['cpu_percent'])} / {_percent(row['cpu_peak_percent'])}"),
    Column(
        "MEM / PEAK",
        lambda row: f"{format_size(row['memory_bytes'])} / {format_size(row['memory_peak_bytes'])}",
    ),
    _PRESSURE,
    _NET,
    _DISK,
)


def _columns(rows: list[Json]) -> tuple[Column, ...]:
    """Return what there is to show: most hosts have no container with a disk of its own."""
    if all(row.get("disk_bytes") is None for row in rows):
        return COLUMNS
    after_memory = COLUMNS.index(_PRESSURE)
    return (*COLUMNS[:after_memory], _OWN_DISK, *COLUMNS[after_memory:])


def arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--no-stream", action="store_true", help="print once (it takes a second to measure CPU)")
    add("--since", metavar="TIME", help="what was used in that time up to now, as 30m; an hour is kept")
    add_options(parser)
    add("containers", metavar="CONTAINER", nargs="*", help="name or id (default: all)")
    parser.epilog = (
        "WAIT: for how much of the time a process waited for a processor, for memory, for a disk; "
        "left out in a narrow terminal."
    )


def run(options: Namespace, client: Client) -> int:
    wanted = {client.get(f"/v1/containers/{quote(name)}")["id"] for name in options.containers}
    if options.since is not None:
        query = {"seconds": str(_seconds(options.since))}
        rows = [
            with_shares(row) for row in client.get("/v1/history", query) if not wanted or row["id"] in wanted
        ]
        show(rows, PAST_COLUMNS, options=options)
        return 0
    return _follow(options, client, wanted=wanted)


def _seconds(words: str) -> float:
    seconds = parse_duration(words)
    if not 0 < seconds <= KEPT_S:
        raise UsageError(f"cannot look back `{words}`: an hour is kept", hint="for example --since 30m")
    return seconds


def _follow(options: Namespace, client: Client, *, wanted: set[str]) -> int:
    before: dict[str, Json] = {}
    is_live = options.format == "table" and sys.stdout.isatty() and not options.no_stream
    for number, samples in enumerate(_samples(client)):
        rows = [
            with_rates(row, before.get(row["id"])) for row in samples if not wanted or row["id"] in wanted
        ]
        before = {row["id"]: row for row in rows}
        if options.no_stream and number == 0 and rows:
            continue
        if is_live:
            print(HOME_AND_CLEAR + "\n".join(table(rows, _columns(rows), width=terminal_width())), flush=True)
        elif options.format == "json" and not options.no_stream:
            print(json.dumps(rows), flush=True)
        else:
            show(rows, _columns(rows), options=options)
            sys.stdout.flush()
        if options.no_stream:
            break
    return 0


def _samples(client: Client) -> Iterator[list[Json]]:
    yield from client.follow("/v1/stats", {"stream": "1"})


def with_rates(row: Json, before: Json | None) -> Json:
    """Return the sample with `cpu_percent` and `…_wait_percent` since the one before; 100 is one whole CPU."""
    seconds = row["sampled_at"] - before["sampled_at"] if before else 0.0
    found = {**row, "cpu_percent": _share(row, before, key="cpu_usage_us", seconds=seconds)}
    for what in WAITS:
        found[f"{what}_wait_percent"] = _share(row, before, key=f"{what}_wait_us", seconds=seconds)
    return found


def _share(row: Json, before: Json | None, *, key: str, seconds: float) -> float | None:
    """Return how much of the time a counter of microseconds grew; None: unknown."""
    now, then = row.get(key), (before or {}).get(key)
    if now is None or then is None or seconds <= 0:
        return None
    grown: float = max(0, now - then)
    return round(grown / 1e4 / seconds, 2)


def with_shares(row: Json) -> Json:
    """Return what was used in a span with `cpu_percent` and `…_wait_percent`, on the average."""
    found = dict(row)
    for name, key in (("cpu", "cpu_us"), *((f"{what}_wait", f"{what}_wait_us") for what in WAITS)):
        used, seconds = row.get(key), row["seconds"]
        found[f"{name}_percent"] = None if used is None or not seconds else round(used / 1e4 / seconds, 2)
    return found

# SPDX-License-Identifier: Apache-2.0
"""`insula top`: list the processes of a container."""

from __future__ import annotations

from insula.cli.render import Column, add_options, show
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "list the processes of a container"

COLUMNS = (
    Column("PID", lambda row: str(row["pid"])),
    Column("HOST PID", lambda row: str(row["host_pid"])),
    Column("PPID", lambda row: str(row["parent_pid"])),
    Column("UID", lambda row: str(row["uid"])),
    Column("STATE", lambda row: str(row["state"])),
    Column("CPU TIME", lambda row: cpu_time(row["cpu_time_s"])),
    Column("MEMORY", lambda row: format_size(row["resident_bytes"])),
    Column("COMMAND", lambda row: str(row["command"]), shrink=1),
)


def arguments(parser: ArgumentParser) -> None:
    add_options(parser, quiet="pids")
    parser.add_argument("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    rows = client.get(f"/v1/containers/{quote(options.container)}/top")
    if options.quiet:
        for row in rows:
            print(row["pid"])
        return 0
    show(rows, COLUMNS, options=options)
    return 0


def cpu_time(seconds: float) -> str:
    """Return minutes:seconds with hundredths, as ps and top show it."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

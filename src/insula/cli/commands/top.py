# SPDX-License-Identifier: Apache-2.0
"""`insula top`: a live screen of all containers, or the processes of one.

The screen's library is loaded only for the screen (docs/adr/0008-cli-without-msgspec.md).
"""

from __future__ import annotations

import sys

from insula.cli.parser import UsageError
from insula.cli.render import Column, add_options, show
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "watch all containers, live, or list the processes of one"

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
    parser.add_argument(
        "container", metavar="CONTAINER", nargs="?", help="list its processes (default: the live screen)"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="on the screen: count each system call (costs busy programs 10 %% or more)",
    )
    parser.epilog = (
        "The screen counts the system calls of a fifth of the time, at random, for rates that cost little."
    )


def run(options: Namespace, client: Client) -> int:
    if options.container is None:
        return _show_screen(client, is_exact=options.exact)
    rows = client.get(f"/v1/containers/{quote(options.container)}/top")
    if options.quiet:
        for row in rows:
            print(row["pid"])
        return 0
    show(rows, COLUMNS, options=options)
    return 0


def _show_screen(client: Client, *, is_exact: bool) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "cannot show a live screen: this is no terminal", hint="insula stats, or insula top CONTAINER"
        )
    host = client.get("/v1/version")["host"]
    client.get("/v1/stats")  # what is refused is told before there is a screen
    try:
        from insula.cli.top.app import show as show_screen
    except ModuleNotFoundError as error:
        raise _without_library(error) from error
    return show_screen(client, host=host, is_exact=is_exact)


def _without_library(error: ModuleNotFoundError) -> Exception:
    """Explain that the screen's library, or what that needs, is not installed."""
    from insula.model.errors import Unsupported

    if (error.name or "").startswith("insula"):
        return error
    return Unsupported(
        f"cannot show a live screen: the Python package `{error.name}` is missing",
        hint="install the Python package textual; without it: insula stats, or insula top CONTAINER",
    )


def cpu_time(seconds: float) -> str:
    """Return minutes:seconds with hundredths, as ps and top show it."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

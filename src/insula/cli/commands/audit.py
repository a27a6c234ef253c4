# SPDX-License-Identifier: Apache-2.0
"""`insula audit ls|verify`: who did what, and how it ended."""

from __future__ import annotations

import json
import sys

from insula.cli.commands.logs import parse_moment, stamp
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, show
from insula.model.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

    from insula.client.http import Client

HELP = "who did what, and how it ended: ls, verify"

LAST = 1000
"""So many lines are shown if nobody says how many."""


def what(row: dict[str, Any]) -> str:
    """Return what was asked for, and how often, if a line tells of several."""
    times = row.get("times", 1)
    return f"{row['method']} {row['path'].removeprefix('/v1/')}" + (f" ({times} times)" if times > 1 else "")


def columns(*, has_tenant: bool) -> list[Column]:
    """Return the columns of the table."""
    found = [
        Column("WHEN", lambda row: stamp(row["at"])[:19]),
        Column("WHO", lambda row: str(row.get("who", "-")), shrink=1),
        Column("FROM", lambda row: str(row.get("from", "-")), shrink=2),
        Column("WHAT", what, shrink=3),
        Column("RESULT", lambda row: str(row["result"])),
        Column("MS", lambda row: str(row.get("ms", "-"))),
    ]
    if has_tenant:
        found.insert(4, Column("TENANT", lambda row: str(row.get("tenant", "-")), shrink=1))
    return found


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list what was asked of insulad: one's own part; admins see all (--tenant '*')",
            "verify": "look whether a line was changed, taken out or cut off (admin)",
        },
    )
    add = verbs["ls"].add_argument
    add("--since", default="1h", metavar="TIME", help="10m, 2026-01-31T12:00:00Z (default: 1h)")
    add("-n", "--tail", type=int, metavar="N", help=f"only the last N (default: {LAST}, at most 10000)")
    add("--lines", action="store_true", help="the lines as they stand in the log, JSON")
    add_options(verbs["ls"])


def run(options: Namespace, client: Client) -> int:
    if options.verb == "verify":
        found = client.get("/v1/audit/verify")
        if found["problem"]:
            raise Conflict(f"the audit log is not as it was written: {found['problem']}")
        files = "1 file" if found["files"] == 1 else f"{found['files']} files"
        print(f"{found['lines']} lines in {files} are as they were written")
        return 0
    count = LAST if options.tail is None else options.tail
    rows = list(client.follow("/v1/audit", {"since": parse_moment(options.since), "tail": str(count)}))
    if options.lines:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        show(rows, columns(has_tenant=client.tenant == "*"), options=options)
    if options.tail is None and len(rows) == LAST:
        print(f"insula: these are the last {LAST} lines: --tail N shows more", file=sys.stderr)
    return 0

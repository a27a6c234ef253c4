# SPDX-License-Identifier: Apache-2.0
"""`insula operation ls|cancel`: long work of the daemon: migrations, checkpoints, builds."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.progress import describe
from insula.cli.render import Column, add_options, ago, show
from insula.client import operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "long operations: ls, cancel"


def _state(row: Json) -> str:
    if row.get("error"):
        return str(row["error"]["message"])
    return describe(row.get("progress") or {}) if row["status"] == "running" else ""


COLUMNS = (
    Column("OPERATION", lambda row: str(row["id"])),
    Column("KIND", lambda row: str(row["kind"])),
    Column("SUBJECT", lambda row: str(row["subject"]), shrink=1),
    Column("STATUS", lambda row: str(row["status"])),
    Column("STARTED", lambda row: ago(row["created_at"])),
    Column("PROGRESS", _state, shrink=2),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(parser, {"ls": "list operations", "cancel": "end operations that may be cancelled"})
    add_options(verbs["ls"], quiet="ids")
    verbs["cancel"].add_argument("operations", metavar="OPERATION", nargs="+", help="id")


def run(options: Namespace, client: Client) -> int:
    if options.verb == "cancel":
        return on_each(options.operations, lambda identifier: operations.cancel(client, identifier))
    show(client.get("/v1/operations"), COLUMNS, options=options, key="operation")
    return 0

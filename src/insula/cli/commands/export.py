# SPDX-License-Identifier: Apache-2.0
"""`insula export ls|check|reload`: where events and traces go without being asked for."""

from __future__ import annotations

from insula.cli.commands.policy import read
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "where events and traces go unasked: ls, check, reload"

COLUMNS = (
    Column("SINK", lambda row: str(row["sink"]), shrink=1),
    Column("SENT", lambda row: str(row.get("sent", 0))),
    Column("WAITING", lambda row: str(row.get("waiting", 0))),
    Column("DROPPED", lambda row: str(row.get("dropped", 0))),
    Column("REFUSED", lambda row: str(row.get("refused", 0))),
    Column("FAILURES", lambda row: str(row.get("failures", 0))),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list the sinks that count now, and what became of what was meant for them",
            "check": "read a list of exports as insulad would, and change nothing",
            "reload": "let the list count from now on; a wrong one is refused and the old one stays",
        },
    )
    add_options(verbs["ls"], quiet="sinks")
    verbs["check"].add_argument("file", metavar="FILE", help="for example /etc/insula/export.toml")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/exports"), COLUMNS, options=options, key="sink")
        case "check":
            client.call("POST", "/v1/exports/check", body={"text": read(options.file)})
            print(f"{options.file}: right")
        case _:
            print(f"{len(client.call('POST', '/v1/exports/reload'))} sinks count now")
    return 0

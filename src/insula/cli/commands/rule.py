# SPDX-License-Identifier: Apache-2.0
"""`insula rule ls|check|reload`: which events are an alarm, and what follows."""

from __future__ import annotations

import sys

from insula.cli.commands.policy import read
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, printable, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "which events are an alarm, and what follows: ls, check, reload"


def _about(row: Json) -> str:
    return (
        " ".join([*row.get("containers", ()), *(f"of {tenant}" for tenant in row.get("tenants", ()))])
        or "all"
    )


COLUMNS = (
    Column("NAME", lambda row: str(row["name"])),
    Column("EVENTS", lambda row: " ".join(row.get("kinds", ())) or "any", shrink=1),
    Column("CONTAINERS", _about, shrink=2),
    Column("ACTION", lambda row: str(row["action"])),
    Column("DESCRIPTION", lambda row: str(row.get("description", "")), shrink=3),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list the rules that count now",
            "check": "read a file of rules as insulad would, and change nothing",
            "reload": "let the files in rules.d count from now on; if one is wrong the old rules stay",
        },
    )
    add_options(verbs["ls"], quiet="names")
    verbs["check"].add_argument("file", metavar="FILE", help="for example /etc/insula/rules.d/servers.toml")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/rules"), COLUMNS, options=options, key="name")
        case "check":
            body = {"text": read(options.file), "file": options.file}
            judged = client.call("POST", "/v1/rules/check", body=body)
            _warn(judged)
            print(f"{options.file}: right; {judged['cost']}")
        case _:
            judged = client.call("POST", "/v1/rules/reload")
            _warn(judged)
            print(f"{len(judged['rules'])} rules count now; {judged['cost']}")
    return 0


def _warn(judged: Json) -> None:
    for warning in judged["warnings"]:
        print(f"warning: {printable(warning)}", file=sys.stderr)

# SPDX-License-Identifier: Apache-2.0
"""`insula diff`: list the files that a container added (A), changed (C) or deleted (D)."""

from __future__ import annotations

import json
import sys

from insula.cli.render import printable
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "list the files that a container changed"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="table (default) or json"
    )
    parser.add_argument("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    with client.open("GET", f"/v1/containers/{quote(options.container)}/diff") as answer:
        changes = json.loads(answer.body())
    if options.format == "json":
        print(json.dumps(changes, indent=2))
    else:
        for change in changes:
            print(f"{change['kind']} {printable(change['path'])}")
    if "x-insula-incomplete" in answer.headers:
        cure = f"`insula exec {options.container} find / -xdev` lists all files"
        print(f"insula: and more: only these {len(changes)} are shown; {cure}", file=sys.stderr)
    return 0

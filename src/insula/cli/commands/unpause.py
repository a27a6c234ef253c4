# SPDX-License-Identifier: Apache-2.0
"""`insula unpause`: let frozen containers go on."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "let frozen containers go on"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    return on_each(
        options.containers, lambda name: client.call("POST", f"/v1/containers/{quote(name)}/unpause")
    )

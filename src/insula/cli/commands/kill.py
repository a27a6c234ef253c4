# SPDX-License-Identifier: Apache-2.0
"""`insula kill`: send a signal to the first process of containers."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "send a signal to containers"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-s", "--signal", default="KILL", metavar="SIGNAL", help="signal by name or number (default: KILL)"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    wish = {"signal": options.signal}
    return on_each(
        options.containers, lambda name: client.call("POST", f"/v1/containers/{quote(name)}/kill", body=wish)
    )

# SPDX-License-Identifier: Apache-2.0
"""`insula wait`: wait until containers end; print their exit codes."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "wait until containers end, print their exit codes"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--condition",
        choices=("exited", "removed"),
        default="exited",
        help="wait until it has exited (default), or until it is removed",
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    def wait(name: str) -> None:
        ended = client.get(f"/v1/containers/{quote(name)}/wait", {"condition": options.condition})
        print(ended["exit_code"], flush=True)

    return on_each(options.containers, wait, prints=False)

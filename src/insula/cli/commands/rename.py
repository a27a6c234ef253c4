# SPDX-License-Identifier: Apache-2.0
"""`insula rename`: give a container another name."""

from __future__ import annotations

from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "give a container another name"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="name or id")
    parser.add_argument("name", metavar="NAME", help="new name")


def run(options: Namespace, client: Client) -> int:
    client.call("POST", f"/v1/containers/{quote(options.container)}/rename", body={"name": options.name})
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`insula migrate`: carry a running container, with memory, files and connections, to another host."""

from __future__ import annotations

import json

from insula.cli.progress import watch
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "carry a running container to another host"
MEGABYTE = 1_000_000


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="how to print the summary"
    )
    parser.add_argument("container", metavar="CONTAINER", help="name or id")
    parser.add_argument("host", metavar="HOST", help="a paired host, see `insula host ls`")


def run(options: Namespace, client: Client) -> int:
    where = f"/v1/containers/{quote(options.container)}/migrate"
    operation = client.call("POST", where, body={"target": options.host})
    ended = watch(client, operation, title=f"migrate {options.container}")
    result = ended["result"]
    print(json.dumps(result) if options.format == "json" else summary(options.container, result))
    return 0


def summary(name: str, result: Json) -> str:
    """Return what the move cost as one line."""
    return (
        f"{name}: now on {result['target']}: frozen {result['frozen_ms']:.0f} ms,"
        f" moved {result['moved_bytes'] / MEGABYTE:.1f} MB, {result['seconds']:.1f} s"
    )

# SPDX-License-Identifier: Apache-2.0
"""`insula restore`: let a stopped container go on from a checkpoint."""

from __future__ import annotations

from insula.cli.key import add_key_option, key_of
from insula.cli.progress import watch
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "let a container go on from a checkpoint"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="", metavar="NAME", help="the checkpoint to go on from (default: the newest)"
    )
    add_key_option(parser, meaning="the key file that it was sealed with (default: the host's own key)")
    parser.add_argument("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    where = f"/v1/containers/{quote(options.container)}/restore"
    body: dict[str, str | bool] = key_of(options)
    if options.checkpoint:
        body["checkpoint"] = options.checkpoint
    ended = watch(client, client.call("POST", where, body=body), title=f"restore {options.container}")
    print(f"{options.container}: running again after {ended['result']['restored_ms']:.0f} ms")
    return 0

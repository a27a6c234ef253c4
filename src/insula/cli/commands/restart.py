# SPDX-License-Identifier: Apache-2.0
"""`insula restart`: stop and start containers."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.client.http import quote
from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "stop and start containers"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-s",
        "--signal",
        default="",
        metavar="SIGNAL",
        help="signal in place of the container's own stop signal",
    )
    parser.add_argument(
        "-t", "--time", metavar="TIME", help="time until KILL (default: the container's, 10s)"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    wish: dict[str, object] = {"signal": options.signal} if options.signal else {}
    if options.time is not None:
        wish["timeout_s"] = round(parse_duration(options.time))
    return on_each(
        options.containers,
        lambda name: client.call("POST", f"/v1/containers/{quote(name)}/restart", body=wish),
    )

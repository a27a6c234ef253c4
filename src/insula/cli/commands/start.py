# SPDX-License-Identifier: Apache-2.0
"""`insula start`: start stopped containers; with --attach stay with one."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.options import add_detach_keys
from insula.cli.parser import UsageError
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "start stopped containers"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--attach", action="store_true", help="stay attached to its output (one container)"
    )
    parser.add_argument("-i", "--interactive", action="store_true", help="forward stdin too")
    add_detach_keys(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    if not (options.attach or options.interactive):
        return on_each(
            options.containers, lambda name: client.call("POST", f"/v1/containers/{quote(name)}/start")
        )
    if len(options.containers) > 1:
        raise UsageError(
            "cannot attach to several containers at once", hint="leave out -a and -i, or name one"
        )
    from insula.cli.commands.attach import attach_to

    return attach_to(
        client, options.containers[0], stdin=options.interactive, start=True, detach_keys=options.detach_keys
    )

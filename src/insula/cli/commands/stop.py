# SPDX-License-Identifier: Apache-2.0
"""`insula stop`: ask containers to end, kill them when the time is over."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.options import add_stop, stop_wish
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "ask containers to end, kill them when the time is over"


def arguments(parser: ArgumentParser) -> None:
    add_stop(parser)


def run(options: Namespace, client: Client) -> int:
    wish = stop_wish(options)
    return on_each(
        options.containers, lambda name: client.call("POST", f"/v1/containers/{quote(name)}/stop", body=wish)
    )

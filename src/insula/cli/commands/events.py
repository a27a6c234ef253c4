# SPDX-License-Identifier: Apache-2.0
"""`insula events`: what happens to containers, from now on."""

from __future__ import annotations

import json
import sys

from insula.cli.commands.logs import stamp
from insula.cli.options import add_count
from insula.cli.render import check_form, printable, short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "show what happens to containers, from now on"


def arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add_count(parser)
    add("--format", default="text", metavar="FORMAT", help="text or json: one object a line")
    add("containers", metavar="CONTAINER", nargs="*", help="name or id (default: all)")


def run(options: Namespace, client: Client) -> int:
    check_form(options.format)
    shown = 0
    for event in client.follow("/v1/events"):
        is_lost = event.get("type") == "lost"
        if not is_lost and options.containers and not _is_meant(event, options.containers):
            continue
        if options.format == "json":
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif is_lost:
            print(f"insula: {event['events']} events were lost", file=sys.stderr, flush=True)
        else:
            words = (stamp(event["at"]), short(event["container"]), printable(event["name"]), event["event"])
            print(*words, *filter(None, [printable(event["detail"])]), flush=True)
        shown += not is_lost
        if options.count and shown >= options.count:
            break
    return 0


def _is_meant(event: Json, words: list[str]) -> bool:
    return any(word == event["name"] or event["container"].startswith(word) for word in words)

# SPDX-License-Identifier: Apache-2.0
"""`insula undrain`: bring back what `insula drain` moved away."""

from __future__ import annotations

from insula.cli.progress import watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "bring back what `insula drain` moved away"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--max-pause", metavar="TIME", help="the longest that any may stand still (default: its own)"
    )


def run(options: Namespace, client: Client) -> int:
    wish: dict[str, object] = {}
    if options.max_pause:
        from insula.model.units import parse_duration

        wish["max_pause_ms"] = round(parse_duration(options.max_pause) * 1000)
    ended = watch(client, client.call("POST", "/v1/host/undrain", body=wish), title="undrain")
    print(f"brought back: {ended['result']['moved']}")
    return 0

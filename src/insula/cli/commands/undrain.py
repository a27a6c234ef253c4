# SPDX-License-Identifier: Apache-2.0
"""`insula undrain`: bring back what `insula drain` carried off."""

from __future__ import annotations

from insula.cli.progress import watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "bring back what `insula drain` carried off this host"


def arguments(parser: ArgumentParser) -> None:
    del parser


def run(options: Namespace, client: Client) -> int:
    del options
    ended = watch(client, client.call("POST", "/v1/host/undrain"), title="undrain")
    print(f"brought back: {ended['result']['moved']}")
    return 0

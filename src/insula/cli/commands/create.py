# SPDX-License-Identifier: Apache-2.0
"""`insula create`: create a container without starting it; print its id."""

from __future__ import annotations

import sys

from insula.cli import specification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "create a container without starting it"


def arguments(parser: ArgumentParser) -> None:
    specification.add_options(parser)


def run(options: Namespace, client: Client) -> int:
    created = client.call("POST", "/v1/containers", body=specification.build(options))
    for warning in created.get("warnings") or ():
        print(f"insula: warning: {warning}", file=sys.stderr)
    print(created["id"])
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`insula run`: create and start a container; stay attached unless --detach."""

from __future__ import annotations

import os
import sys

from insula.cli import specification
from insula.cli.options import add_detach_keys, add_signals
from insula.cli.parser import UsageError
from insula.client.http import quote
from insula.model.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "create and start a container, and stay attached to it"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="do not attach: print the id and return")
    add_detach_keys(parser)
    add_signals(parser)
    specification.add_options(parser)


def run(options: Namespace, client: Client) -> int:
    if options.tty and options.interactive and not options.detach and not os.isatty(0):
        raise UsageError("cannot use --tty: stdin is not a terminal", hint="leave out -t")
    spec = specification.build(options)
    created = client.call("POST", "/v1/containers", body=spec)
    for warning in created.get("warnings") or ():
        print(f"insula: warning: {warning}", file=sys.stderr)
    identifier = str(created["id"])
    if options.detach:
        client.call("POST", f"/v1/containers/{identifier}/start")
        print(identifier)
        return 0
    return _attached(options, client, identifier=identifier, name=str(created["name"]))


def _attached(options: Namespace, client: Client, *, identifier: str, name: str) -> int:
    from insula.client import attach, terminal

    settings = attach.Options(
        tty=options.tty,
        stdin=options.interactive,
        sig_proxy=options.sig_proxy,
        owns=True,
        detach_keys=options.detach_keys,
        name=name,
    )
    rows, columns = terminal.size(0 if os.isatty(0) else 1) if options.tty else (0, 0)
    query = {
        "stdin": "1" if options.interactive else "",
        "start": "1",
        "rows": str(rows or ""),
        "columns": str(columns or ""),
    }
    try:
        stream = client.upgrade(f"/v1/containers/{identifier}/attach", query=query)
    except KeyboardInterrupt:
        _take_back(client, identifier, removes=options.rm)
        raise
    outcome = attach.attach(stream, settings)
    if outcome.exit_code is None:
        print(f"\r\ninsula: left `{name}` running", file=sys.stderr)
        return 0
    if options.rm:
        _wait_removed(client, identifier)
    return outcome.exit_code


def _take_back(client: Client, identifier: str, *, removes: bool) -> None:
    # Whoever presses ctrl-c while it starts means the program, which cannot be sent the signal yet.
    path = f"/v1/containers/{quote(identifier)}"
    try:
        if removes:
            client.call("DELETE", path, query={"force": "1", "volumes": "1"})
        else:
            client.call("POST", f"{path}/stop", body={"timeout_s": 0})
    except NotFound:
        pass


def _wait_removed(client: Client, identifier: str) -> None:
    try:
        client.get(f"/v1/containers/{quote(identifier)}/wait", {"condition": "removed"})
    except NotFound:
        pass

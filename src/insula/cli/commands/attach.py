# SPDX-License-Identifier: Apache-2.0
"""`insula attach`: stand at a running container's terminal or pipes; leave it with ctrl-p ctrl-q."""

from __future__ import annotations

import os
import sys

from insula.cli.options import add_detach_keys, add_signals
from insula.client.http import quote
from insula.model.errors import WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "stand at a running container's terminal or pipes"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--no-stdin", action="store_true", help="only show its output, send no input")
    add_signals(parser)
    add_detach_keys(parser)
    parser.add_argument("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    return attach_to(
        client,
        options.container,
        stdin=not options.no_stdin,
        sig_proxy=options.sig_proxy,
        detach_keys=options.detach_keys,
    )


def attach_to(
    client: Client, name: str, *, stdin: bool, detach_keys: str, start: bool = False, sig_proxy: bool = True
) -> int:
    """Attach to a container that exists; return the exit code.    start: start it when the stream stands."""
    from insula.client import attach, terminal

    record = client.get(f"/v1/containers/{quote(name)}")
    runs = record["status"] in ("running", "paused")
    start = start and not runs
    if not start and not runs:
        raise WrongState(
            f"cannot attach to `{name}`: it is {record['status']}", hint=f"`insula start -a {name}`"
        )
    spec = record["spec"]
    has_stdin = stdin and bool(spec.get("stdin_open"))
    tty = bool(spec.get("tty"))
    rows, columns = terminal.size(0 if os.isatty(0) else 1) if tty else (0, 0)
    query = {
        "stdin": "1" if has_stdin else "",
        "start": "1" if start else "",
        "rows": str(rows or ""),
        "columns": str(columns or ""),
    }
    settings = attach.Options(
        tty=tty, stdin=has_stdin, sig_proxy=sig_proxy, detach_keys=detach_keys, name=name
    )
    outcome = attach.attach(client.upgrade(f"/v1/containers/{quote(name)}/attach", query=query), settings)
    if outcome.exit_code is None:
        print(f"\r\ninsula: left `{name}` running", file=sys.stderr)
        return 0
    return outcome.exit_code

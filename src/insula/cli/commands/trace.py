# SPDX-License-Identifier: Apache-2.0
"""`insula trace`: what a container's programs ask of the kernel, as it happens, also after the container has moved."""

from __future__ import annotations

import json
import sys

from insula.cli.commands.logs import stamp
from insula.cli.options import add_count
from insula.cli.render import check_form, printable
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "show what a container asks of the kernel, as it happens"
#: Parameter of the API → our option.
_QUERY = {
    "kinds": "kind",
    "calls": "call",
    "errors": "error",
    "pids": "pid",
    "commands": "command",
    "paths": "path",
    "addresses": "address",
}


def arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-k", "--kind", action="append", metavar="KIND",
        help="exec, fork, exit, signal, oom, capability, seccomp, file, network, mount, identity, kernel, throttle, drift",
    )  # fmt: skip
    add("-c", "--call", action="append", metavar="NAME", help="only that system call, as openat")
    add(
        "-e",
        "--error",
        action="append",
        metavar="ERRNO",
        help="only what failed so, as ENOENT; any: what failed",
    )
    add("-p", "--path", action="append", metavar="PATTERN", help="only paths like '/etc/*'")
    add("-a", "--address", action="append", metavar="PATTERN", help="only addresses like '*:5432'")
    add("--pid", action="append", metavar="PID", help="only that process, by its number in the container")
    add("--command", action="append", metavar="PATTERN", help="only threads of names like 'nginx*'")
    add_count(parser)
    add("--format", default="text", metavar="FORMAT", help="text or json: one object a line")
    parser.epilog = "Options that are given several times mean any of them; different ones must all hold."
    add("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    check_form(options.format)
    query = {name: getattr(options, option) or () for name, option in _QUERY.items()}
    shown = 0
    for line in client.follow(f"/v1/containers/{quote(options.container)}/trace", query):
        kind = line["type"]
        if kind == "began":
            continue
        if options.format == "json":
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif kind == "event":
            print(text_of(line), flush=True)
        else:
            note = f"{line['events']} events were lost" if kind == "lost" else line["reason"]
            print(f"insula: {note}", file=sys.stderr, flush=True)
        shown += kind == "event"
        if options.count and shown >= options.count:
            break
    return 0


def text_of(event: Json) -> str:
    """Return an event as one line."""
    who = f"{printable(event.get('command', ''))}[{event.get('pid', 0)}]"
    name = event.get("call") or event["kind"]
    words = [printable(word) for word in event.get("arguments", ())] or [
        printable(event[key]) for key in ("path", "other_path", "address") if event.get(key)
    ]
    if event.get("is_cut"):
        words.append("(path cut)")
    if detail := event.get("detail"):
        words.append(printable(detail) if event.get("call") else f"({printable(detail)})")
    if event.get("call"):
        words.append(f"= {event.get('error') or event.get('result', 0)}")
    if event["kind"] == "seccomp":
        words.append("(by the seccomp filter)")
    return f"{stamp(event['at'])[11:-1]} {who:20} {name} {' '.join(words)}"

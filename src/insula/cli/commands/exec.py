# SPDX-License-Identifier: Apache-2.0
"""`insula exec`: run another program in a running container."""

from __future__ import annotations

import os

from insula.cli.options import add_detach_keys, add_environment, add_place, add_streams
from insula.cli.parser import UsageError
from insula.cli.specification import environment
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "run another program in a running container"


def arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="start it and return at once")
    add_streams(parser)
    add_environment(parser)
    add_place(parser)
    add_detach_keys(parser)
    add("container", metavar="CONTAINER", help="name or id")
    command = add("command", metavar="COMMAND", nargs="...", help="program and its arguments")
    command.required = False


def run(options: Namespace, client: Client) -> int:
    if not options.command:
        raise UsageError(f"cannot exec in `{options.container}`: no command", hint="see `insula exec --help`")
    if options.tty and options.interactive and not options.detach and not os.isatty(0):
        raise UsageError("cannot use --tty: stdin is not a terminal", hint="leave out -t")
    where = f"/v1/containers/{quote(options.container)}/exec"
    wish = body(options)
    if options.detach:
        client.call("POST", where, body=wish)
        return 0
    from insula.client import attach

    settings = attach.Options(
        tty=options.tty,
        stdin=options.interactive,
        owns=True,
        detach_keys=options.detach_keys,
        name=options.container,
    )
    outcome = attach.attach(client.upgrade(where, query={}, body=wish), settings)
    return outcome.exit_code or 0


def body(options: Namespace) -> Json:
    """Return the JSON of an ExecSpec."""
    rows, columns = 0, 0
    if options.tty and not options.detach:
        from insula.client import terminal

        rows, columns = terminal.size(0 if os.isatty(0) else 1)
    wish: Json = {
        "command": options.command,
        "environment": environment(options.env, options.env_file, tty=options.tty),
        "working_directory": options.workdir,
        "user": options.user,
        "tty": options.tty,
        "stdin_open": options.interactive,
        "detach": options.detach,
        "rows": rows,
        "columns": columns,
    }
    return {key: value for key, value in wish.items() if value}

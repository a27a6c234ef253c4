# SPDX-License-Identifier: Apache-2.0
"""`insula exec`: run another program in a running container."""

from __future__ import annotations

import os

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
    add("-i", "--interactive", action="store_true", help="pass your input on to it")
    add("-t", "--tty", action="store_true", help="give the program a terminal (with -i: yours)")
    add(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set an environment variable; without VALUE: as in your shell",
    )
    add(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="set environment variables from a file of NAME=VALUE lines",
    )
    add("-w", "--workdir", default="", metavar="FOLDER", help="working directory in the container")
    add("-u", "--user", default="", metavar="USER[:GROUP]", help="user to run as, by name or id")
    add(
        "--detach-keys",
        default="ctrl-p,ctrl-q",
        metavar="KEYS",
        help="keys that let go of it while it runs on (default: ctrl-p,ctrl-q)",
    )
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

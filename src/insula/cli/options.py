# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, each defined once: the same words, the same help, the same meaning."""

from __future__ import annotations

from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Json

DETACH_KEYS = "ctrl-p,ctrl-q"


def add_streams(parser: ArgumentParser) -> None:
    """-i and -t."""
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="pass your input on to it")
    add("-t", "--tty", action="store_true", help="give the program a terminal (with -i: yours)")


def add_environment(parser: ArgumentParser) -> None:
    """-e and --env-file."""
    add = parser.add_argument
    add(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set an environment variable; without VALUE: as in your shell",
    )  # fmt: skip
    add(
        "--env-file", action="append", default=[], metavar="FILE",
        help="set environment variables from a file of NAME=VALUE lines",
    )  # fmt: skip


def add_place(parser: ArgumentParser) -> None:
    """-w and -u."""
    add = parser.add_argument
    add("-w", "--workdir", default="", metavar="FOLDER", help="working directory in the container")
    add("-u", "--user", default="", metavar="USER[:GROUP]", help="user to run as, by name or id")


def add_detach_keys(parser: ArgumentParser) -> None:
    """--detach-keys."""
    parser.add_argument(
        "--detach-keys", default=DETACH_KEYS, metavar="KEYS",
        help=f"keys that let go of it while it runs on (default: {DETACH_KEYS})",
    )  # fmt: skip


def add_signals(parser: ArgumentParser) -> None:
    """--sig-proxy and --no-sig-proxy."""
    parser.add_argument(
        "--no-sig-proxy", dest="sig_proxy", action="store_false",
        help="keep signals to yourself: ctrl-c ends only this command",
    )  # fmt: skip
    parser.add_argument(
        "--sig-proxy", dest="sig_proxy", action="store_true",
        help="pass signals such as ctrl-c on to the program (default)",
    )  # fmt: skip


def add_count(parser: ArgumentParser) -> None:
    """-n of commands that tell events."""
    parser.add_argument("-n", "--count", type=positive, default=0, metavar="N", help="end after N events")


def positive(text: str) -> int:
    """Read a number from 1 on.  Raises: ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text)):
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"`{text}` is no number from 1 on")
    return int(text)


def add_stop(parser: ArgumentParser) -> None:
    """How containers are asked to end."""
    add = parser.add_argument
    add(
        "-s", "--signal", default="", metavar="SIGNAL",
        help="signal in place of the container's own stop signal",
    )  # fmt: skip
    add("-t", "--time", metavar="TIME", help="time until KILL (default: the container's, 10s)")
    add_containers(parser)


def add_containers(parser: ArgumentParser) -> None:
    """One name or more."""
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def stop_wish(options: Namespace) -> Json:
    """Return the JSON of a StopWish.  Raises: InvalidSpec."""
    wish: Json = {"signal": options.signal} if options.signal else {}
    if options.time is not None:
        wish["timeout_s"] = round(parse_duration(options.time))
    return wish

# SPDX-License-Identifier: Apache-2.0
"""`insula logs`: print what a container wrote, each line to the stream it was written to."""

from __future__ import annotations

from time import time

from insula.cli.parser import UsageError
from insula.client.http import quote
from insula.model.errors import InvalidSpec
from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "print what a container wrote"


def arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-f", "--follow", action="store_true", help="go on until the container ends")
    add("-n", "--tail", default="", metavar="N", help="only the last N lines (default: all)")
    add(
        "--since",
        default="",
        metavar="TIME",
        help="after that time: 10m, 2026-01-31T12:00:00Z, seconds since 1970",
    )
    add("--until", default="", metavar="TIME", help="before that time")
    add("-t", "--timestamps", action="store_true", help="begin each line with its time (UTC)")
    add("container", metavar="CONTAINER", help="name or id")


def run(options: Namespace, client: Client) -> int:
    from insula.client.attach import write_all

    if options.tail not in ("", "all") and not options.tail.isdecimal():
        raise UsageError(
            f"cannot use --tail `{options.tail}`: not a number of lines", hint="for example --tail 100"
        )
    query = {
        "follow": "1" if options.follow else "",
        "tail": options.tail.removeprefix("all"),
        "since": parse_moment(options.since),
        "until": parse_moment(options.until),
        "stdout": "1",
        "stderr": "1",
    }
    for line in client.follow(f"/v1/containers/{quote(options.container)}/logs", query):
        text = f"{stamp(line['time'])} {line['text']}" if options.timestamps else str(line["text"])
        data = text.removesuffix("\n").encode("utf-8", "surrogateescape")
        write_all(2 if line["stream"] == "stderr" else 1, data + b"\n")
    return 0


def parse_moment(text: str, *, now: float | None = None) -> str:
    """Return seconds since 1970 for `10m` (ago), a time of RFC 3339, or such seconds.

    Raises: UsageError.
    """
    if not text:
        return ""
    try:
        seconds = parse_duration(text)
    except InvalidSpec:
        return repr(_parse_date(text))
    is_absolute = text[-1].isdigit()
    return repr(seconds if is_absolute else (time() if now is None else now) - seconds)


def _parse_date(text: str) -> float:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"cannot read time `{text}`", hint="for example 10m or 2026-01-31T12:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def stamp(seconds: float) -> str:
    """Return a time as RFC 3339 with microseconds, UTC.  Never later than it was: `--since` with it finds the line."""
    from time import gmtime, strftime

    micro = int(seconds * 1_000_000)
    if micro / 1_000_000 > seconds:  # the product was rounded up
        micro -= 1
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(micro // 1_000_000)) + f".{micro % 1_000_000:06d}Z"

# SPDX-License-Identifier: Apache-2.0
"""`insula migrate`: carry a running container, with memory, files and connections, to another host."""

from __future__ import annotations

import json
import sys

from insula.cli.progress import watch
from insula.client.http import quote
from insula.model.errors import Denied, InvalidSpec, WrongState
from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "carry a running container to another host"
MEGABYTE = 1_000_000


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="how to print the summary"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "stop-copy", "pre-copy", "post-copy"),
        default="auto",
        help="what travels before it stops: nothing (stop-copy), or memory and files in rounds (pre-copy); with post-copy"
        " it runs there at once and its memory follows: whatever it writes, but if this host dies before all has come, or"
        " is out of reach for 5 minutes, the container ends; default: auto, which is never post-copy",
    )
    parser.add_argument(
        "--max-pause",
        metavar="TIME",
        help="refuse, before anything stops, if it would stand still for longer (default: its own, or 300ms)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="measure and say what it would be like; move nothing"
    )
    parser.add_argument(
        "--resolve",
        choices=("keep", "give-up"),
        help="instead of moving: decide about a container that stands still because the other host of its move"
        " never returns; it runs here (keep), or nothing of it stays here (give-up); one whose memory is still there ends"
        " here (keep), or runs on there as it was (give-up); administrators only",
    )
    parser.add_argument("container", metavar="CONTAINER", help="name or id")
    parser.add_argument(
        "host", metavar="HOST", nargs="?", default="", help="a paired host, see `insula host ls`"
    )


def run(options: Namespace, client: Client) -> int:
    if options.resolve:
        where = f"/v1/containers/{quote(options.container)}/resolve"
        client.call("POST", where, body={"decision": options.resolve})
        return 0
    if not options.host:
        raise InvalidSpec(
            f"cannot migrate `{options.container}`: no host is named", hint="insula host ls lists them"
        )
    if not options.plan:
        _warn_of_recording(options.container, client)
    where = f"/v1/containers/{quote(options.container)}/migrate"
    wish: dict[str, object] = {"target": options.host, "mode": options.mode, "plan": options.plan}
    if options.max_pause:
        wish["max_pause_ms"] = round(parse_duration(options.max_pause) * 1000)
    operation = client.call("POST", where, body=wish)
    ended = watch(client, operation, title=f"migrate {options.container}")
    result = ended["result"]
    if options.format == "json":
        print(json.dumps(result))
    else:
        print((planned if options.plan else summary)(options.container, result))
    return 0


def _warn_of_recording(container: str, client: Client) -> None:
    """Say what comes of a recording: it does not go along."""
    try:
        client.get(f"/v1/containers/{quote(container)}/profile")
    except (WrongState, Denied):  # it is not recorded, or that is not for the caller to know
        return
    print(
        f"insula: warning: the recording of `{container}` ends with the move: what was seen is kept here as a profile",
        file=sys.stderr,
    )


CARRIED = ("memory", "shared", "file", "tmpfs")
"""What `planned` tells the size of: private memory, shared memory, files on disk, and those of tmpfs mounts."""


def planned(name: str, result: Json) -> str:
    """Return what a move would be like, as a few lines."""
    carried = ", ".join(f"{word} {result[f'{word}_bytes'] / MEGABYTE:.1f}" for word in CARRIED)
    link, packed = result["link_bytes_per_s"] / MEGABYTE, result["packed_bytes_per_s"] / MEGABYTE
    gain = f", {packed:.0f} MB/s of this memory compressed" if packed > link else ""
    return (
        f"{name} to {result['target']}, {result['mode']}:\n"
        f"  to carry   {carried} MB\n"
        f"  link       {link:.0f} MB/s{gain}\n"
        f"  written    {result['written_bytes_per_s'] / MEGABYTE:.1f} MB/s ({result['tracker']})\n"
        f"  pause      about {result['pause_ms']:.0f} ms (at most {result['max_pause_ms']} ms are allowed)\n"
        f"  verdict    {result['verdict']}"
    )


def summary(name: str, result: Json) -> str:
    """Return what the move cost as one line."""
    spared = result.get("raw_bytes", 0) - result["moved_bytes"]
    packed = f" (compressed, {result['raw_bytes'] / MEGABYTE:.1f} before)" if spared >= MEGABYTE else ""
    return (
        f"{name}: now on {result['target']}: frozen {result['frozen_ms']:.0f} ms,"
        f" moved {result['moved_bytes'] / MEGABYTE:.1f} MB{packed}, {result['seconds']:.1f} s"
    )

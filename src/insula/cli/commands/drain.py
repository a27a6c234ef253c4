# SPDX-License-Identifier: Apache-2.0
"""`insula drain`: move all running containers to other hosts, so that it can be patched and rebooted."""

from __future__ import annotations

from insula.cli.options import positive
from insula.cli.progress import watch
from insula.cli.render import Column, add_options, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "move all running containers to the paired hosts"

COLUMNS = (
    Column("CONTAINER", lambda row: str(row["name"]), shrink=1),
    Column("TENANT", lambda row: str(row["tenant"]), shrink=2),
    Column("TO", lambda row: str(row["target"])),
)


def arguments(parser: ArgumentParser) -> None:
    add_options(parser, quiet="names of containers")
    parser.add_argument("--plan", action="store_true", help="only say what would go where")
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="HOST",
        help="a paired host that may take something (again for more; default: all that answer)",
    )
    parser.add_argument(
        "--parallel", type=positive, default=1, metavar="N", help="moves at a time (default: 1)"
    )
    parser.add_argument(
        "--max-pause", metavar="TIME", help="the longest that any may stand still (default: its own)"
    )


def run(options: Namespace, client: Client) -> int:
    wish: dict[str, object] = {"to": options.to, "parallel": options.parallel, "plan": options.plan}
    if options.max_pause:
        from insula.model.units import parse_duration

        wish["max_pause_ms"] = round(parse_duration(options.max_pause) * 1000)
    answer = client.call("POST", "/v1/host/drain", body=wish)
    if options.plan:
        show(answer, COLUMNS, options=options, key="name")
        return 0
    ended = watch(client, answer, title="drain")
    moved = ended["result"]["moved"]
    print(
        f"drained: {moved} moved; `insula undrain` brings them back"
        if moved
        else "drained: nothing runs here"
    )
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`insula ps`: list containers.  On the way of every script: it imports next to nothing."""

from __future__ import annotations

from insula.cli.render import Column, add_options, ago, clip, short, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from insula.client.http import Client, Json

HELP = "list containers"
COMMAND_LENGTH = 22


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument(
        "--all-tenants", action="store_true", help="the containers of all tenants (operators and admins)"
    )
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only those with that name (or a part of it), id, status, label, ancestor (image) or tenant",
    )  # fmt: skip
    add_options(parser, quiet="ids", truncates=True)


def run(options: Namespace, client: Client) -> int:
    wanted = _filters(options.filter) if options.filter else {}
    is_all = options.all or "status" in wanted
    has_tenant = options.all_tenants or client.tenant == "*"
    query = {"all": "1" if is_all else "", "tenant": "*" if options.all_tenants else ""}
    rows = client.get("/v1/containers", query)
    if wanted:
        from insula.cli.filters import select

        rows = select(rows, wanted)
    show(rows, columns(is_whole=options.no_trunc, has_tenant=has_tenant), options=options)
    return 0


def _filters(words: Sequence[str]) -> dict[str, list[str]]:
    from insula.cli.filters import parse

    return parse(words)


def columns(
    *, is_whole: bool = False, has_tenant: bool = False, now: float | None = None
) -> Sequence[Column]:
    """Return the columns of the table."""
    found = [
        Column("CONTAINER ID", lambda row: str(row["id"]) if is_whole else short(row["id"])),
        Column("IMAGE", lambda row: str(row["spec"]["image"]), shrink=3),
        Column(
            "COMMAND", lambda row: command(row) if is_whole else clip(command(row), COMMAND_LENGTH), shrink=4
        ),
        Column("CREATED", lambda row: ago(row["created_at"], now=now), spare=True),
        Column("STATUS", lambda row: status(row, now=now), shrink=2),
        Column("PORTS", ports, shrink=1),
        Column("NAMES", lambda row: str(row["name"])),
    ]
    if has_tenant:
        found.insert(6, Column("TENANT", lambda row: str(row["tenant"])))
    return found


def command(row: Json) -> str:
    """Return what pid 1 was told to execute, in quotes as docker shows it."""
    spec, config = row["spec"], row.get("config") or {}
    own = spec.get("entrypoint")
    head = list(own if own is not None else config.get("entrypoint") or ())
    tail = list(spec.get("command") or (config.get("command") or () if own is None else ()))
    return '"' + " ".join([*head, *tail]) + '"'


def status(row: Json, *, now: float | None = None) -> str:
    """Return `Up 5 minutes`, `Exited (0) 2 hours ago`, `Created`, …"""
    word = str(row["status"])
    if word == "exited":
        ended = ago(row.get("finished_at", 0.0), now=now)
        return f"Exited ({row.get('exit_code')}) {ended}"
    if word in ("running", "paused", "checkpointing", "migrating"):
        up = "Up " + ago(row.get("started_at", 0.0), now=now).removesuffix(" ago")
        return up if word == "running" else f"{up} ({word.title()})"
    return word.title()


def ports(row: Json) -> str:
    """Return `0.0.0.0:8080->80/tcp, …`, ranges as `8000-8010->8000-8010/tcp`."""
    return ", ".join(_port(port) for port in row.get("ports") or ())


def _port(port: Json) -> str:
    more = int(port.get("count", 1)) - 1
    host, inside = int(port.get("host_port", 0)), int(port["container_port"])
    ends = (f"-{host + more}", f"-{inside + more}") if more else ("", "")
    address = port.get("host_address", "0.0.0.0")
    return f"{address}:{host}{ends[0]}->{inside}{ends[1]}/{port.get('protocol', 'tcp')}"

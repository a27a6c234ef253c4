# SPDX-License-Identifier: Apache-2.0
"""`insula network ls|create|rm|inspect`."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, short, show
from insula.cli.specification import labels
from insula.client.http import quote
from insula.model.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "networks: ls, create, rm, inspect"

COLUMNS = (
    Column("NETWORK ID", lambda row: short(row["id"])),
    Column("NAME", lambda row: str(row["name"]), shrink=1),
    Column("SUBNET", lambda row: str(row["subnet"])),
    Column("IPV6", lambda row: str(row.get("subnet6") or "no")),
    Column("GATEWAY", lambda row: str(row["gateway"])),
    Column("BRIDGE", lambda row: str(row["bridge"])),
    Column("OUTSIDE", lambda row: str(row.get("uplink") or ("no" if row.get("internal") else "NAT"))),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list networks",
            "create": "create a network",
            "rm": "remove networks",
            "inspect": "print everything known of networks as JSON",
        },
    )
    add_options(verbs["ls"], quiet="ids")
    create = verbs["create"].add_argument
    create(
        "--subnet",
        action="append",
        default=[],
        metavar="CIDR",
        help="for example 10.9.0.0/24 (default: the next free one); once more for IPv6, such as fd00:9::/64",
    )
    create(
        "--gateway",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of the bridge (default: the first one); once more for IPv6",
    )
    create("--ipv6", action="store_const", const="on", dest="ipv6", help="refuse if IPv6 cannot be had")
    create("--no-ipv6", action="store_const", const="off", dest="ipv6", help="IPv4 only")
    create(
        "--uplink",
        default="",
        metavar="INTERFACE",
        help="join this interface's network, if the policy grants it",
    )
    create("--internal", action="store_true", help="no way to the outside")
    create(
        "-l", "--label", action="append", default=[], metavar="NAME[=VALUE]", help="label for your own use"
    )
    create("name", metavar="NAME", help="name of the network")
    verbs["rm"].add_argument("networks", metavar="NETWORK", nargs="+", help="name or id")
    from insula.cli.commands.inspect import add_format

    add_format(verbs["inspect"])
    verbs["inspect"].add_argument("networks", metavar="NETWORK", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/networks"), COLUMNS, options=options)
            return 0
        case "create":
            print(client.call("POST", "/v1/networks", body=body(options))["id"])
            return 0
        case "rm":
            return on_each(
                options.networks, lambda name: client.call("DELETE", f"/v1/networks/{quote(name)}")
            )
        case _:
            from insula.cli.commands.inspect import inspect

            return inspect(client, options.networks, kinds=["network"], form=options.format)


def both(words: list[str], *, what: str) -> tuple[str, str]:
    """Return the word for IPv4 and that for IPv6; empty for none."""
    found = {4: "", 6: ""}
    for each in words:
        version = 6 if ":" in each else 4
        if found[version]:
            raise InvalidSpec(f"cannot use {what} `{each}`: `{found[version]}` is named already")
        found[version] = each
    return found[4], found[6]


def body(options: Namespace) -> Json:
    """Return the JSON of a NetworkWish."""
    subnet, subnet6 = both(options.subnet, what="--subnet")
    gateway, gateway6 = both(options.gateway, what="--gateway")
    wish = {
        "name": options.name,
        "subnet": subnet,
        "gateway": gateway,
        "ipv6": options.ipv6,
        "subnet6": subnet6,
        "gateway6": gateway6,
        "uplink": options.uplink,
        "internal": options.internal,
        "labels": labels(options.label),
    }
    return {key: value for key, value in wish.items() if value}

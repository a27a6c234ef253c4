# SPDX-License-Identifier: Apache-2.0
"""`insula host ls|info|add|rm|token`: this host, and the hosts that containers can be carried to."""

from __future__ import annotations

import json

from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, ago, fill, printable, show
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "this host and those paired with it: ls, info, add, rm, token"

COLUMNS = (
    Column("NAME", lambda row: str(row["name"])),
    Column("ADDRESS", lambda row: str(row["address"])),
    Column("REACHABLE", lambda row: "yes" if row.get("reachable") else "no"),
    Column("ADDED", lambda row: ago(row["added_at"]) if row.get("added_at") else "-"),
    Column("FINGERPRINT", lambda row: str(row["fingerprint"]), shrink=1),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list paired hosts",
            "info": "tell about this host",
            "add": "pair with another host, by the token that `insula host token` printed there",
            "rm": "forget paired hosts",
            "token": "print a one-time token by which another host may pair with this one",
        },
    )
    add_options(verbs["ls"], quiet="names")
    verbs["info"].add_argument("--format", default="table", metavar="FORMAT", help="table, json or {{.name}}")
    verbs["add"].add_argument(
        "--token",
        required=True,
        metavar="TOKEN",
        help="what `insula host token` printed there; good once, for 15 minutes",
    )
    verbs["add"].add_argument("name", metavar="NAME", help="how that host shall be called here")
    verbs["add"].add_argument(
        "address", metavar="ADDRESS:PORT", help="where that host's insulad listens (its --listen)"
    )
    verbs["rm"].add_argument("hosts", metavar="HOST", nargs="+", help="name")
    verbs["token"].add_argument("-q", "--quiet", action="store_true", help="print only the token")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/hosts"), COLUMNS, options=options, key="name")
        case "info":
            _info(client.get("/v1/host"), wanted=options.format)
        case "add":
            wish = {"name": options.name, "address": options.address, "token": options.token}
            added = client.call("POST", "/v1/hosts", body=wish)
            print(f"paired with {added['name']} at {added['address']}")
        case "rm":
            return on_each(options.hosts, lambda name: client.call("DELETE", f"/v1/hosts/{quote(name)}"))
        case _:
            _token(client, is_quiet=options.quiet)
    return 0


def _token(client: Client, *, is_quiet: bool) -> None:
    made = client.call("POST", "/v1/hosts/token")
    if is_quiet:
        print(made["token"])
        return
    print(f"token:        {made['token']}")
    print(f"address:      {made['address']}")
    print(f"fingerprint:  {made['fingerprint']}")
    print(f"valid for {made['expires_s']:.0f} s, once; on the other host, NAME being its word for this one:")
    print(f"  insula host add --token {made['token']} NAME {made['address']}")


def _info(facts: Json, *, wanted: str) -> None:
    if wanted == "json":
        print(json.dumps(facts, indent=2))
        return
    if "{{" in wanted:
        print(fill(wanted, facts, columns=()))
        return
    for key, value in facts.items():
        print(f"{key.removesuffix('_bytes').replace('_', ' ') + ':':<14} {printable(_text(key, value))}")


def _text(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items()) or "none"
    return str(value)

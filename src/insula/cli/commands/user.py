# SPDX-License-Identifier: Apache-2.0
"""`insula user ls|add|set|rm`: Unix users and groups of this host, and users of other machines."""

from __future__ import annotations

import os
import sys

from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, ago, show, until
from insula.client.http import quote
from insula.model.errors import BadRequest
from insula.model.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "who may give commands: ls, add, set, rm"
ROLES = ("viewer", "user", "operator", "admin")

COLUMNS = (
    Column("NAME", lambda row: str(row["name"])),
    Column("KIND", lambda row: str(row["origin"])),
    Column("ROLE", lambda row: str(row["role"])),
    Column("TENANT", lambda row: str(row["tenant"])),
    Column("ID", lambda row: "-" if row.get("number") is None else str(row["number"])),
    Column("STANDING", lambda row: str(row["standing"])),
    Column("SINCE", lambda row: ago(row["created_at"])),
    Column("ENDS", lambda row: until(row["expires_at"]) if row.get("expires_at") else "-"),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list the known users; who has never called is in no list, and a user of its own tenant",
            "add": "make a user known, or give its right back",
            "set": "change a user's role or tenant",
            "rm": "take a user's right away at once, and its tokens",
        },
    )
    add_options(verbs["ls"], quiet="names")
    add = verbs["add"].add_argument
    add("name", metavar="NAME", help="a Unix user, @GROUP, or with --remote any new name")
    add(
        "--remote",
        action="store_true",
        help="somebody on another machine: prints the identity file, this once",
    )
    add("-o", "--output", default="", metavar="FILE", help="write the identity there instead (mode 0600)")
    add("-e", "--expires", default="", metavar="TIME", help="when the right ends (remote users: 365d)")
    for name in ("add", "set"):
        verbs[name].add_argument("--tenant", default="", metavar="TENANT", help="whose things it works with")
        verbs[name].add_argument("--role", default="", choices=ROLES, metavar="ROLE", help=", ".join(ROLES))
    verbs["set"].add_argument("name", metavar="NAME", help="as in `insula user ls`")
    verbs["set"].add_argument(
        "--by-groups",
        action="store_true",
        help="let its groups decide, as for a user whom nobody added or set",
    )
    verbs["set"].add_argument(
        "--rebind", action="store_true", help="it has another uid or gid now, and is still the same one"
    )
    verbs["rm"].add_argument("users", metavar="NAME", nargs="+", help="as in `insula user ls`")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/users"), COLUMNS, options=options, key="name")
        case "add":
            _add(options, client)
        case "set":
            change = {key: getattr(options, key) for key in ("tenant", "role") if getattr(options, key)}
            body: Json = {**change}
            for word in ("rebind", "by_groups"):
                if getattr(options, word):
                    body[word] = True
            if not body:
                raise BadRequest(
                    "cannot set: nothing to change", hint="--role, --tenant, --by-groups or --rebind"
                )
            client.call("PATCH", f"/v1/users/{quote(options.name)}", body=body)
        case _:
            return on_each(options.users, lambda each: client.call("DELETE", f"/v1/users/{quote(each)}"))
    return 0


def _add(options: Namespace, client: Client) -> None:
    wish: Json = {"name": options.name}
    for key in ("tenant", "role", "remote"):
        if getattr(options, key):
            wish[key] = getattr(options, key)
    if options.expires:
        wish["expires_s"] = round(parse_duration(options.expires))
    if options.output:
        # Before anything is made: a key that cannot be written would be lost.
        descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    else:
        descriptor = -1
    try:
        identity = client.call("POST", "/v1/users", body=wish).get("identity", "")
    except BaseException:
        if descriptor >= 0:
            os.unlink(options.output)
        raise
    if descriptor >= 0:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(identity)
    elif identity:
        sys.stdout.write(identity)

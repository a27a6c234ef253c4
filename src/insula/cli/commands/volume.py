# SPDX-License-Identifier: Apache-2.0
"""`insula volume ls|create|rm|inspect`."""

from __future__ import annotations

from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.render import Column, add_options, ago, show
from insula.cli.specification import labels
from insula.client.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "volumes: ls, create, rm, inspect"

COLUMNS = (
    Column("NAME", lambda row: str(row["name"]), shrink=1),
    Column("TENANT", lambda row: str(row["tenant"])),
    Column("CREATED", lambda row: ago(row["created_at"])),
    Column("ANONYMOUS", lambda row: "yes" if row.get("anonymous") else "no"),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "ls": "list volumes",
            "create": "create a volume",
            "rm": "remove volumes and their files",
            "inspect": "print everything known of volumes as JSON",
        },
    )
    add_options(verbs["ls"], quiet="names")
    verbs["create"].add_argument(
        "-l", "--label", action="append", default=[], metavar="NAME[=VALUE]", help="label for your own use"
    )
    verbs["create"].add_argument(
        "name", metavar="NAME", nargs="?", default="", help="name of the volume (default: one is made up)"
    )
    verbs["rm"].add_argument("volumes", metavar="VOLUME", nargs="+", help="name")
    from insula.cli.commands.inspect import add_format

    add_format(verbs["inspect"])
    verbs["inspect"].add_argument("volumes", metavar="VOLUME", nargs="+", help="name")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "ls":
            show(client.get("/v1/volumes"), COLUMNS, options=options, key="name")
            return 0
        case "create":
            wish: Json = {"name": options.name} if options.name else {}
            if options.label:
                wish["labels"] = labels(options.label)
            print(client.call("POST", "/v1/volumes", body=wish)["name"])
            return 0
        case "rm":
            return on_each(options.volumes, lambda name: client.call("DELETE", f"/v1/volumes/{quote(name)}"))
        case _:
            from insula.cli.commands.inspect import inspect

            return inspect(client, options.volumes, kinds=["volume"], form=options.format)

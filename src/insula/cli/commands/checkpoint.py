# SPDX-License-Identifier: Apache-2.0
"""`insula checkpoint create|ls|rm`: save a running container's state to disk, list what was saved, remove it."""

from __future__ import annotations

from insula.cli.key import add_key_option, key_of
from insula.cli.many import on_each
from insula.cli.parser import add_verbs
from insula.cli.progress import watch
from insula.cli.render import Column, add_options, ago, show
from insula.client.http import quote
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "save a running container's state: create, ls, rm"

COLUMNS = (
    Column("NAME", lambda row: str(row["name"])),
    Column("CREATED", lambda row: ago(row["created_at"])),
    Column("SIZE", lambda row: format_size(row["size_bytes"])),
    Column("SEALED", lambda row: ("encrypted" if row["encrypted"] else "yes") + f", {row['key']}"),
    Column("CRIU", lambda row: str(row["criu_version"])),
    Column("KERNEL", lambda row: str(row["kernel_release"]), shrink=1),
)


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "create": "save the state of a running container",
            "ls": "list the checkpoints of a container",
            "rm": "remove checkpoints",
        },
    )
    verbs["create"].add_argument(
        "--name", default="", metavar="NAME", help="name of the checkpoint (default: date and time)"
    )
    verbs["create"].add_argument(
        "--leave-running", action="store_true", help="let it run on afterwards (default: it ends)"
    )
    verbs["create"].add_argument(
        "--encrypt", action="store_true", help="nothing of it lies readable on a disk (AES-256-GCM)"
    )
    add_key_option(
        verbs["create"],
        meaning="seal with the key in this file, at least 32 bytes (default: the host's own key)",
    )
    add_options(verbs["ls"], quiet="names")
    for parser_of_verb in verbs.values():
        parser_of_verb.add_argument("container", metavar="CONTAINER", help="name or id")
    verbs["rm"].add_argument("names", metavar="CHECKPOINT", nargs="+", help="name of the checkpoint")


def run(options: Namespace, client: Client) -> int:
    where = f"/v1/containers/{quote(options.container)}/checkpoints"
    if options.verb == "ls":
        show(client.get(where), COLUMNS, options=options, key="name")
        return 0
    if options.verb == "rm":
        return on_each(options.names, lambda name: client.call("DELETE", f"{where}/{quote(name)}"))
    body: dict[str, str | bool] = key_of(options)
    if options.leave_running:
        body["leave_running"] = True
    if options.encrypt:
        body["encrypt"] = True
    if options.name:
        body["name"] = options.name
    ended = watch(client, client.call("POST", where, body=body), title=f"checkpoint {options.container}")
    result = ended["result"]
    print(f"{result['checkpoint']}: {format_size(result['size_bytes'])}, frozen {result['frozen_ms']:.0f} ms")
    return 0

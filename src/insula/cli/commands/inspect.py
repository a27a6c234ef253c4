# SPDX-License-Identifier: Apache-2.0
"""`insula inspect`: print everything known of things of any kind, as one JSON array."""

from __future__ import annotations

import json

from insula.cli.main import report
from insula.client.http import quote
from insula.model.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "print all that is known of containers, images and so on, as JSON"
KINDS = ("container", "image", "network", "volume")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--type", choices=KINDS, help="look only among these (default: in this order)")
    add_format(parser)
    parser.add_argument("names", metavar="NAME", nargs="+", help="name or id")


def add_format(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="json", metavar="FORMAT", help="json, or a template as {{.status}}"
    )


def run(options: Namespace, client: Client) -> int:
    return inspect(
        client, options.names, kinds=[options.type] if options.type else list(KINDS), form=options.format
    )


def inspect(client: Client, names: list[str], *, kinds: list[str], form: str) -> int:
    """Print the records of all that are found; return 1 if one is missing."""
    found: list[Json] = []
    code = 0
    for name in names:
        try:
            found.append(find(client, name, kinds=kinds))
        except NotFound as error:
            report(error)
            code = 1
    if form == "json":
        print(json.dumps(found, indent=4))
        return code
    from insula.cli.render import fill

    for record in found:
        print(fill(form, record, columns=()))
    return code


def find(client: Client, name: str, *, kinds: list[str]) -> Json:
    """Return the first thing of that name.

    Raises: NotFound naming all kinds that were searched.
    """
    failure: NotFound | None = None
    for kind in kinds:
        try:
            record: Json = client.get(f"/v1/{kind}s/{quote(name)}")
            return record
        except NotFound as error:
            failure = error
    if failure is not None and len(kinds) == 1:
        raise failure
    raise NotFound(f"cannot inspect `{name}`: no such {', '.join(kinds[:-1])} or {kinds[-1]}")

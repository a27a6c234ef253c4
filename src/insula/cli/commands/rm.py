# SPDX-License-Identifier: Apache-2.0
"""`insula rm`: remove containers and what only they used."""

from __future__ import annotations

from insula.cli.main import report
from insula.cli.many import on_each
from insula.client.http import quote
from insula.model.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "remove containers"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--force", action="store_true", help="kill it if it runs; no error if it is not there"
    )
    parser.add_argument("-v", "--volumes", action="store_true", help="remove its anonymous volumes too")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name or id")


def run(options: Namespace, client: Client) -> int:
    query = {"force": "1" if options.force else "", "volumes": "1" if options.volumes else ""}

    # As docker: with --force one that is not there is told, and is no failure.
    # Source: github.com/docker/cli, cli/command/container/rm.go, runRm
    def remove(name: str) -> None:
        try:
            client.call("DELETE", f"/v1/containers/{quote(name)}", query=query)
        except NotFound as error:
            if not options.force:
                raise
            report(error)
        else:
            print(name, flush=True)

    return on_each(options.containers, remove, prints=False)

# SPDX-License-Identifier: Apache-2.0
"""`insula version`: versions of this program, of the daemon and of its kernel."""

from __future__ import annotations

import json
import sys

import insula

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client, Json

HELP = "print the versions of insula, insulad and the kernel"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--client", action="store_true", help="this program only")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="table (default) or json"
    )


def run(options: Namespace, client: Client) -> int:
    own: Json = {"version": own_version(), "python": sys.version.partition(" ")[0]}
    if options.client:
        print(json.dumps({"client": own}) if options.format == "json" else f"insula {own['version']}")
        return 0
    if options.format == "json":
        print(json.dumps({"client": own, "daemon": client.get("/v1/version")}, indent=2))
        return 0
    print(f"insula   {own['version']} (Python {own['python']})", flush=True)  # also if no daemon answers
    daemon = client.get("/v1/version")
    print(
        f"insulad  {daemon['version']} (API {daemon['api']}, host {daemon['host']}, Linux {daemon['kernel']})"
    )
    return 0


def own_version() -> str:
    """Return the version; from the package's metadata if the package does not say it (an import of 30 ms)."""
    said = getattr(insula, "__version__", None)
    if said is not None:
        return str(said)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("insula")
    except PackageNotFoundError:
        return "unknown"

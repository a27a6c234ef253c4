# SPDX-License-Identifier: Apache-2.0
"""`insula whoami`: who the caller is for insulad, and what it may do."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "tell who you are here, and what you may do"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--format", default="table", choices=("table", "json"), help="table or json")


def run(options: Namespace, client: Client) -> int:
    found = client.get("/v1/whoami")
    if options.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    rows = {
        "name": found["name"] or "nobody",
        "known by": {"unix": f"uid {found['uid']}", "token": f"token {found['token']}"}.get(
            found["kind"], found["kind"]
        ),
        "tenant": found["tenant"] or "-",
        "role": found["role"] or "-",
        "may": ", ".join(found["actions"]) or "-",
        "everywhere": ", ".join(found["everywhere"]) or "-",
    }
    if found["container"]:
        rows["container"] = found["container"][:12]
    for name, value in rows.items():
        print(f"{name + ':':<12} {value}")
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`insula policy show|check|reload`: what users may ask for, beyond what every user may."""

from __future__ import annotations

import json

from insula.cli.parser import add_verbs
from insula.model.errors import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from insula.client.http import Client

HELP = "what users may ask for: show, check, reload"


def arguments(parser: ArgumentParser) -> None:
    verbs = add_verbs(
        parser,
        {
            "show": "print the policy that counts now",
            "check": "read a policy as insulad would, and change nothing",
            "reload": "let the policy file count from now on; a wrong one is refused and the old one stays",
        },
    )
    verbs["show"].add_argument("--format", default="toml", choices=("toml", "json"), help="toml or json")
    verbs["check"].add_argument("file", metavar="FILE", help="for example /etc/insula/policy.toml")


def run(options: Namespace, client: Client) -> int:
    match options.verb:
        case "show":
            found = client.get("/v1/policy")
            nothing = f"# {found['path']} is empty or not there: users may what every user may"
            text = found["text"].rstrip() or nothing
            print(json.dumps(found["rules"], indent=2) if options.format == "json" else text)
        case "check":
            client.call("POST", "/v1/policy/check", body={"text": read(options.file)})
            print(f"{options.file}: right")
        case _:
            found = client.call("POST", "/v1/policy/reload")
            print(f"{found['path']} counts now")
    return 0


def read(path: str) -> str:
    """Return the text of a file that insulad is to judge.  Raises: BadRequest, OSError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 20)
    except UnicodeDecodeError as error:
        raise BadRequest(f"cannot read `{path}`: no UTF-8") from error

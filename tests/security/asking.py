# SPDX-License-Identifier: Apache-2.0
"""Wishes and addresses of the API, for checks that ask it what the CLI would never ask."""

import json

from hosted import Person
from insula.api.routes import Route


def create(person: Person, **spec: object) -> tuple[int, dict[str, object]]:
    """Ask for a container; returns status and error."""
    body = json.dumps({"image": "box", "command": ["sleep", "1000"], "name": "c", **spec}).encode()
    status, answer = person.ask("POST", "/v1/containers", body=body)
    return status, answer.get("error", {})


def target(route: Route, ref: str) -> str:
    """Return a route's path for a thing."""
    return route.path.replace("{ref:.+}", ref).replace("{ref}", ref).replace("{name}", "one")


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def text_of(person: Person, path: str) -> tuple[int, str]:
    """Ask for something that may be no JSON; returns status and the whole answer."""
    with person.asking("GET", path) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split()[1]), answer.decode(errors="replace")

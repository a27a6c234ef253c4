# SPDX-License-Identifier: Apache-2.0
"""No way into the daemon without a right that it asks for."""

import ast
from pathlib import Path

import pytest

from insula.api.routes import ROUTES, Route
from insula.model.grant import Action
from syntax import tree_of

SOURCE = Path(__file__).resolve().parents[3] / "src/insula"

#: Routes that anybody may use who reaches the socket, and why that is right.
OPEN = {
    "GET /v1/version": "says what this is, nothing of anybody",
    "GET /v1/whoami": "says who the caller is",
    "POST /v1/peer/pair": "needs a one-time token in its body",
    "GET /openapi.json": "the document of this interface",
}


async def handler(_call: object) -> None:
    """What a route leads to."""


def test_a_route_without_a_right_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        Route("GET", "/v1/x", handler)  # type: ignore[call-arg, arg-type]
    for nothing in (None, "", "read", True):
        with pytest.raises(TypeError, match="names no right"):
            Route("GET", "/v1/x", handler, nothing)  # type: ignore[arg-type]


def test_only_these_routes_are_open() -> None:
    found = {f"{route.method} {route.path}" for route in ROUTES if route.action is Action.OPEN}
    assert found <= set(OPEN)


def test_no_route_stands_twice() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_routes_are_registered_at_one_place() -> None:
    """`server.build` goes through the table; nobody else adds a route, a static folder or an application."""
    adders = {
        "add_route",
        "add_get",
        "add_post",
        "add_put",
        "add_patch",
        "add_delete",
        "add_view",
        "add_static",
    }
    adders |= {"add_routes", "add_resource", "add_subapp", "add_head"}
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for folder in ("api", "daemon", "monitor", "web")
        for path in (SOURCE / folder).rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in adders
    ]
    assert [each.split(":")[0] for each in found] == ["api/server.py"], found


def test_each_handler_gets_a_call_which_exists_only_with_a_grant() -> None:
    """The one place that builds a `Call` is the one that has checked."""
    found = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Call"
    ]
    assert found == ["api/server.py"]


def test_a_grant_is_built_at_one_place() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Grant"
    }
    assert found <= {"tenant/check.py"} | {each for each in found if each.startswith("daemon/")}

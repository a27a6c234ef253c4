# SPDX-License-Identifier: Apache-2.0
"""T3, T7: what is another tenant's does not exist, can not be used, and is not told of."""

import contextlib
import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from hosted import Host, wait_until
from insula.api.routes import ROUTES, Route
from insula.model.grant import Action
from security.asking import create, name_of, target, text_of


@dataclass(frozen=True)
class Secrets:
    """What alice has, and what names it."""

    words: tuple[str, ...]
    refs: dict[str, str]


@pytest.fixture(scope="module")
def hidden(the_host: Host) -> Iterator[Secrets]:
    """Things of alice's under names that nobody can guess."""
    alice, name = the_host.alice, f"hidden{secrets.token_hex(6)}"
    alice("volume", "create", name)
    alice("network", "create", name)
    alice(
        "run",
        "-d",
        "--name",
        name,
        "-v",
        f"{name}:/v",
        "--network",
        name,
        "--label",
        f"x={name}",
        "box",
        "sleep",
        "1000",
    )
    data = subprocess.run(["tar", "-c", "--files-from=/dev/null"], capture_output=True, check=True).stdout
    alice("image", "import", "-", name, data=data)
    record, image = alice.look(name), alice.json("image", "inspect", name)[0]
    network = alice.json("network", "inspect", name)[0]
    operation = alice.ask("POST", f"/v1/containers/{name}/checkpoints", body=b'{"leave_running": true}')[1]
    alice.wait_for(name, status="running")
    wait_until(
        lambda: (
            alice.ask("GET", f"/v1/operations/{operation['id']}")[1]["status"] not in ("running", "pending")
        ),
        what="the checkpoint is made",
    )
    refs = {"containers": record["id"], "images": image["id"], "networks": network["id"], "volumes": name, "operations": str(operation.get("id", name))}  # fmt: skip
    yield Secrets(
        (name, record["id"], record["id"][:12], record["attachment"]["address"], image["id"], network["id"]),
        refs,
    )
    the_host.remove_all()
    alice.ask("DELETE", f"/v1/images/{name}")


_OF_THINGS = [
    each
    for each in ROUTES
    if "{ref" in each.path
    and each.path.split("/")[2] in ("containers", "images", "networks", "volumes", "operations")
]
BODIES = {
    "kill": b'{"signal": "KILL"}', "rename": b'{"name": "stolen"}', "resize": b'{"rows": 1, "columns": 1}', "exec": b'{"command": ["true"], "detach": true}',
    "migrate": b'{"target": "beta"}', "resolve": b'{"decision": "keep"}', "stop": b"{}", "restart": b"{}", "checkpoints": b"{}", "restore": b"{}",
}  # fmt: skip


@pytest.mark.parametrize("route", _OF_THINGS, ids=name_of)
def test_t3_thing_of_another_is_like_none_at_all(the_host: Host, hidden: Secrets, route: Route) -> None:
    kind, verb = route.path.split("/")[2], route.path.rsplit("/", 1)[1]
    ref = hidden.refs[kind]
    nothing = "0" * len(ref) if kind != "images" else "sha256:" + "0" * 64
    query = "?path=/etc" if verb == "archive" else ""
    body = BODIES.get(verb, b"")
    theirs = the_host.bob.ask(route.method, target(route, ref) + query, body=body)
    none = the_host.bob.ask(route.method, target(route, nothing) + query, body=body)
    assert theirs[0] == none[0] and theirs[0] in (400, 403, 404), (theirs, none)
    assert json.dumps(theirs[1]).replace(ref, "X") == json.dumps(none[1]).replace(nothing, "X")
    if kind == "containers" and route.action is not Action.PEER:
        record = the_host.alice.look(ref)
        assert (record["status"], record["name"]) == ("running", hidden.words[0])


@pytest.mark.parametrize("way", ["image", "network", "volume", "name", "address"])
def test_t3_thing_of_another_cannot_be_used(the_host: Host, hidden: Secrets, way: str) -> None:
    bob = the_host.bob
    name = hidden.words[0]
    wish: dict[str, object] = {
        "image": {"image": hidden.refs["images"]},
        "network": {"network": hidden.refs["networks"]},
        "volume": {"mounts": [{"kind": "volume", "source": name, "target": "/v"}]},
        "name": {"name": name},
        "address": {"address": hidden.words[3]},
    }[way]
    status, error = create(bob, **wish)
    if way in ("volume", "name"):  # each tenant has its own of that name
        assert status == 201
        assert len(list(the_host.folder.glob(f"state/volumes/*/{name}"))) == (2 if way == "volume" else 1)
        assert bob.ask("DELETE", f"/v1/containers/{wish.get('name', 'c')}?volumes=1")[0] == 204
        bob.give("volume", "rm", name)
    else:
        assert 400 <= status < 500, error
        assert name not in json.dumps(error)


#: Events never end; the audit log repeats what the caller itself has asked for here: each has a test of its own.
_APART = ("/v1/events", "/v1/audit")
_LISTS = [
    each for each in ROUTES if each.method == "GET" and "{" not in each.path and each.path not in _APART
]


@pytest.mark.parametrize("route", _LISTS, ids=name_of)
def test_t7_list_tells_nothing_of_others(the_host: Host, hidden: Secrets, route: Route) -> None:
    for query in ("", "?all=1", f"?tenant={the_host.alice.tenant}", "?tenant=*", "?all=1&tenant=root"):
        status, answer = text_of(the_host.bob, route.path + query)
        assert status < 500
        found = [word for word in (*hidden.words, the_host.alice.tenant) if word in answer]
        if "tenant=" in query and status != 200:  # an error quotes the question
            found = [word for word in found if word not in query]
        assert not found, (query, answer)


@pytest.mark.parametrize("query", ["", "?since=0", "?tail=10000"])
def test_t7_audit_tells_nothing_of_others(the_host: Host, hidden: Secrets, query: str) -> None:
    asked = ("path", "asked_tenant", "made", "made_name")  # words of its own: it may give its things any name
    the_host.bob.ask("GET", f"/v1/containers/{hidden.refs['containers']}")
    the_host.bob.ask("GET", f"/v1/containers?tenant={the_host.alice.tenant}")
    status, answer = text_of(the_host.bob, f"/v1/audit{query}")
    assert status == 200
    lines = [
        json.loads(line) for line in answer.splitlines() if line.startswith("{")
    ]  # between chunks' sizes
    assert lines
    for line in lines:
        assert line["tenant"] == the_host.bob.tenant
        assert not {"n", "prev"} & line.keys(), "they count everybody's requests"
        told = json.dumps({key: value for key, value in line.items() if key not in asked})
        assert not [word for word in (*hidden.words, the_host.alice.tenant) if word in told], line


def test_t7_audit_of_another_is_like_none_at_all(the_host: Host, hidden: Secrets) -> None:
    theirs = the_host.bob.ask("GET", f"/v1/audit?tenant={the_host.alice.tenant}")
    none = the_host.bob.ask("GET", "/v1/audit?tenant=nobody-at-all")
    assert theirs[0] == none[0] == 404
    assert the_host.bob.ask("GET", "/v1/audit/verify")[0] == 403


def test_t7_events_tell_nothing_of_others(the_host: Host, hidden: Secrets) -> None:
    with the_host.bob.asking("GET", "/v1/events?follow=1") as connection:
        connection.settimeout(2.0)
        the_host.alice("kill", hidden.words[0])
        the_host.alice.wait_for(hidden.words[0], status="exited")
        the_host.alice("start", hidden.words[0])
        the_host.bob("run", "--rm", "box", "true")
        heard = b""
        with contextlib.suppress(TimeoutError):
            while piece := connection.recv(65536):
                heard += piece
    assert not [word for word in hidden.words if word.encode() in heard]


def test_t3_answers_for_what_is_anothers_take_no_longer(the_host: Host, hidden: Secrets) -> None:
    """Not a clock, but a comparison: of 40 questions each, in turn, those that nothing held up take about as long."""
    times: dict[str, list[float]] = {hidden.refs["containers"]: [], "0" * 64: []}
    for _ in range(40):
        for ref, taken in times.items():
            began = time.perf_counter()
            assert the_host.bob.ask("GET", f"/v1/containers/{ref}")[0] == 404
            taken.append(time.perf_counter() - began)
    theirs, none = (sorted(taken)[4] for taken in times.values())
    assert theirs < none * 3 and none < theirs * 3, (theirs, none)

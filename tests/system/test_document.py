# SPDX-License-Identifier: Apache-2.0
"""What a live insulad answers is what its document says, for each route that only looks."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

import documented
from hosted import Host, Person, wait_until
from insula.api.described import DESCRIBED, Answer

#: Which one a place in a path stands for, by the noun before it.
ONE = {"containers": "web", "images": "box", "networks": "inside", "volumes": "data", "tenants": "~"}
#: What only answers when something happens, or belongs to what no test here makes; tested where that is.
ELSEWHERE = {
    "GET /v1/containers/{ref}/wait": "ends with the container",
    "GET /v1/containers/{ref}/trace": "test_trace.py",
    "GET /v1/containers/{ref}/calls": "test_trace.py",
    "GET /v1/calls": "test_trace.py",
    "GET /v1/events": "test_events.py",
    "GET /v1/containers/{ref}/profile": "test_profile.py",
    "GET /v1/containers/{ref}/drift": "test_profile.py",
    "GET /v1/profiles/{ref}": "test_profile.py",
    "GET /v1/profiles/{ref}/seccomp": "test_profile.py",
    "GET /v1/operations/{ref}": "below",
    "GET /v1/operations/{ref}/follow": "below",
}
LOOKS = sorted(
    key for key in DESCRIBED if key.startswith("GET ") and documented.is_told(key) and key not in ELSEWHERE
)
#: Lists that hold something here, so that their elements are looked at, too.
FILLED = {
    f"GET /v1/{noun}"
    for noun in ("containers", "images", "networks", "volumes", "tenants", "tokens", "users", "stats", "operations")
} | {f"GET /v1/containers/{{ref}}/{noun}" for noun in ("top", "diff", "logs", "checkpoints")}  # fmt: skip


@pytest.fixture(scope="module")
def furnished(module_host: Host) -> Iterator[Person]:
    """Somebody who has one of everything."""
    root = module_host.root
    root("user", "add", "@users")
    root("token", "create")
    root("network", "create", "inside")
    root("volume", "create", "data")
    program = "echo hello; echo new > /root/file; while :; do sleep 1; done"
    root("run", "-d", "--name", "web", "-v", "data:/data", "--network", "inside", "box", "sh", "-c", program)
    wait_until(lambda: root("logs", "web") == "hello", what="it has begun")
    root("checkpoint", "create", "web", "--leave-running", deadline_s=120.0)
    yield root
    module_host.remove_all()


def path_of(key: str) -> str:
    """Return the path with something that is there in each place."""
    words = key.split()[1].split("/")
    pairs = zip(["", *words], words, strict=False)
    return "/".join(ONE[before] if word == "{ref}" else word for before, word in pairs)


def looked(person: Person, path: str, *, is_lines: bool) -> tuple[int, list[Any]]:
    """Ask for a path; return the status, and what is answered: one value, or one a line."""
    with person.asking("GET", path) as connection:
        answer = http.client.HTTPResponse(connection, method="GET")
        answer.begin()
        body = answer.read()
    return answer.status, [json.loads(each) for each in (body.splitlines() if is_lines else [body]) if each]


@pytest.mark.parametrize("key", LOOKS)
def test_an_answer_is_as_the_document_says(furnished: Person, key: str) -> None:
    every = "?all=1" if key == "GET /v1/containers" else ""
    status, answers = looked(furnished, path_of(key) + every, is_lines=DESCRIBED[key].form is Answer.LINES)
    assert status == 200, answers
    wrong = [fault for each in answers for fault in documented.faults(key, each)]
    assert not wrong, "\n".join(wrong)
    if key in FILLED:
        assert all(answers) and answers, "nothing there"


def test_an_operation_is_as_the_document_says(furnished: Person) -> None:
    [[operation, *_]] = looked(furnished, "/v1/operations", is_lines=False)[1]
    for key in ("GET /v1/operations/{ref}", "GET /v1/operations/{ref}/follow"):
        path = key.split()[1].format(ref=operation["id"])
        _, answers = looked(furnished, path, is_lines=key.endswith("follow"))
        assert answers
        assert not [fault for each in answers for fault in documented.faults(key, each)]

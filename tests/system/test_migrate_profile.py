# SPDX-License-Identifier: Apache-2.0
"""What a container is held to goes along when it is carried, and a profile of one host holds on another."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from demo.check import python_of_host

from insula.kernel.netlink import namespace_entered
from two_hosts import LAN, SERVER, Conversation, Pair, emptied_after, wait_until

PROFILE = "usual"
#: Each leaves `done`, or the name of the error.
HEAD = """
import errno, os, socket
def do(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"
"""
WRITE = 'answer = do(lambda: open("/var/tmp/{}", "w").close())'
PLANT = 'answer = do(lambda: open("/etc/planted", "w").close())'
REACH = 'answer = do(lambda: socket.create_connection(("127.0.0.1", 7000), timeout=5).close())'
OUTSIDE = f"{LAN.prefix}.250"
"""Of the machine from which tests look on."""
RAISE = "answer = do(lambda: os.setgid(1))"


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from emptied_after(module_pair, "c", "d", "C")


def create(pair: Pair, name: str, *, host: str) -> str:
    address = LAN.address(next(pair.numbers))
    body = {"image": "host", "name": name, "network": "lan", "address": address, "user": "0"}
    pair.client(host).call(
        "POST", "/v1/containers", body=body | {"command": [python_of_host(), "-c", SERVER]}
    )
    return address


@contextmanager
def started(pair: Pair, name: str, address: str, *, host: str) -> Iterator[Callable[[str], Any]]:
    pair.client(host).call("POST", f"/v1/containers/{name}/start")
    conversation = Conversation(pair.world, address)
    try:
        assert conversation.run(HEAD) is None
        yield conversation.run
    finally:
        conversation.close()


def record(pair: Pair, address: str) -> None:
    client = pair.client("alpha")
    client.call("POST", "/v1/containers/c/profile/record")
    with started(pair, "c", address, host="alpha") as run:
        assert run(WRITE.format("a")) == "done"
        # Often: the interpreter looks at a connection once more when it drops it, some time later.
        assert [run(REACH) for _ in range(10)] == ["done"] * 10
        assert run("answer = 1 / 0").startswith("Traceback")
    client.call("POST", "/v1/containers/c/stop", body={"timeout_s": 1})
    client.call("POST", "/v1/containers/c/profile/save", body={"name": PROFILE})


def drifts(pair: Pair, name: str, *, host: str) -> set[tuple[str, str, bool]]:
    found = pair.client(host).get(f"/v1/containers/{name}/drift")["drifts"]
    return {(each["part"], each["thing"], each["is_refused"]) for each in found}


def test_it_goes_along_and_holds_elsewhere(pair: Pair) -> None:
    address = create(pair, "c", host="alpha")
    record(pair, address)
    profile = pair.client("alpha").get(f"/v1/profiles/{PROFILE}")
    assert profile["outgoing"] == {"127.0.0.1:7000/tcp": 10}
    pair.client("alpha").call("POST", "/v1/containers/c/profile/apply", body={"profile": PROFILE})
    with started(pair, "c", address, host="alpha") as run:
        assert (run(WRITE.format("b")), run(REACH)) == ("done", "done")
        assert drifts(pair, "c", host="alpha") == set()
        pair.migrate("c", "alpha", "beta")
        assert (run(WRITE.format("c")), run(REACH)) == ("done", "done")
        assert drifts(pair, "c", host="beta") == set()
        assert (run(PLANT), run(RAISE)) == ("EROFS", "EPERM")
        with namespace_entered(pair.world.outside), socket.create_server((OUTSIDE, 0)) as server:
            port = server.getsockname()[1]
            leave = f'answer = do(lambda: socket.create_connection(("{OUTSIDE}", {port}), timeout=3).close())'
            # It stands in a LAN, with no host on its way that could answer in another's place.
            assert run(leave) in ("ECONNREFUSED", "timed out")
        wait_until(lambda: len(drifts(pair, "c", host="beta")) >= 3)
        assert {
            ("written", "/etc", True),
            ("calls", "setgid", True),
            ("outgoing", f"{OUTSIDE}:{port}/tcp", True),
        } <= drifts(pair, "c", host="beta")

    # The same profile, as a file, on the other host.
    pair.client("beta").call("PUT", f"/v1/profiles/{PROFILE}", body=json.dumps(profile).encode())
    other = create(pair, "d", host="beta")
    pair.client("beta").call("POST", "/v1/containers/d/profile/apply", body={"profile": PROFILE})
    with started(pair, "d", other, host="beta") as run:
        assert (run(WRITE.format("a")), run(REACH)) == ("done", "done")
        assert drifts(pair, "d", host="beta") == set()
        assert run(PLANT) == "EROFS"
    for host in ("alpha", "beta"):
        pair.client(host).call("DELETE", f"/v1/profiles/{PROFILE}")


def test_a_recording_ends_with_a_move_and_is_kept(pair: Pair) -> None:
    address = create(pair, "C", host="alpha")
    client = pair.client("alpha")
    client.call("POST", "/v1/containers/C/profile/record")
    with started(pair, "C", address, host="alpha") as run:
        assert run(WRITE.format("a")) == "done"
        pair.migrate("C", "alpha", "beta")
        wait_until(lambda: [each["name"] for each in client.get("/v1/profiles")] == ["c"])
    kept = client.get("/v1/profiles/c")
    assert "/var/tmp" in kept["written"]
    assert kept["incomplete_because"] == "it moved to host beta"
    client.call("DELETE", "/v1/profiles/c")

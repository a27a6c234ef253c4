# SPDX-License-Identifier: Apache-2.0
"""Published ports follow a move: at the host that it went to, and by way of the host that it left."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from insula.kernel.netlink import Route, namespace_entered
from insula.model.errors import PortInUse
from two_hosts import SERVER, Pair, emptied_after, python_of_host, start_pair, wait_until
from waiting import DEADLINE_S

ALPHA, BETA = "10.99.0.1", "10.99.0.2"


@pytest.fixture(scope="module")
def module_pair() -> Iterator[Pair]:
    for pair in start_pair():
        for host in ("alpha", "beta"):
            body = {"name": "inside", "subnet": "10.88.0.0/24"}
            made = pair.client(host).call("POST", "/v1/networks", body=body)
            pair.world.marks.add(str(made["bridge"]))
        yield pair


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from emptied_after(module_pair, "c", "other")


def run(
    pair: Pair, name: str = "c", *, host: str = "alpha", network: str = "inside", **port: object
) -> dict[str, Any]:
    """Start the program with its port published; returns the mapping."""
    body = {"image": "host", "name": name, "network": network, "user": "0"}
    body |= {"command": [python_of_host(), "-c", SERVER], "ports": [{"container_port": 7000, **port}]}
    pair.client(host).call("POST", "/v1/containers", body=body)
    pair.client(host).call("POST", f"/v1/containers/{name}/start")
    found = pair.find(host, name)
    assert found is not None
    return dict(found["ports"][0])


def connect(pair: Pair, host: str, port: int) -> socket.socket:
    with namespace_entered(pair.world.outside):
        return socket.create_connection((host, port), timeout=DEADLINE_S)


def count(pair: Pair, host: str, port: int) -> int:
    """Ask for the next number; 0 if nobody is there."""
    try:
        with connect(pair, host, port) as visitor:
            return next_number(visitor)
    except OSError:
        return 0


def next_number(visitor: socket.socket) -> int:
    visitor.sendall(b"count\n")
    return int(visitor.makefile("rb").readline() or b"0")


def move(pair: Pair, source: str, target: str) -> dict[str, Any]:
    return pair.act(source, "c", "migrate", target=target, max_pause_ms=60_000)


@pytest.mark.parametrize("wished", [0, 8080])
def test_visitors_of_either_host_find_it_and_it_comes_back(pair: Pair, wished: int) -> None:
    port = run(pair, host_port=wished)["host_port"]
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    before = count(pair, ALPHA, port)
    move(pair, "alpha", "beta")
    moved = pair.find("beta", "c")
    assert moved is not None and moved["ports"][0]["host_port"] == port
    assert count(pair, BETA, port) == before + 1
    assert count(pair, ALPHA, port) == before + 2
    pair.restart("alpha")
    assert count(pair, ALPHA, port) == before + 3
    move(pair, "beta", "alpha")
    assert count(pair, ALPHA, port) == before + 4
    assert count(pair, BETA, port) == before + 5
    pair.remove("c")
    assert count(pair, ALPHA, port) == 0


def test_who_was_connected_through_the_port_is_told_at_once(pair: Pair) -> None:
    port = run(pair, host_port=8080)["host_port"]
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    with connect(pair, ALPHA, port) as old:
        assert next_number(old) > 0
        move(pair, "alpha", "beta")
        with pytest.raises(ConnectionResetError):
            next_number(old)


def test_a_relay_ends_when_nobody_is_there_any_more(pair: Pair) -> None:
    port = run(pair, host_port=8080)["host_port"]
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    move(pair, "alpha", "beta")
    pair.remove("c")
    run(pair, "other", host="beta", host_port=8080)
    assert wait_until(lambda: count(pair, BETA, port) > 0)
    assert wait_until(lambda: count(pair, ALPHA, port) == 0)


def test_a_port_that_is_taken_there_is_refused_before_anything_stops(pair: Pair) -> None:
    port = run(pair, host_port=8080)["host_port"]
    run(pair, "other", host="beta", host_port=8080)
    for plan in (True, False):
        with pytest.raises(PortInUse, match="the port is held by container `other`") as caught:
            pair.act("alpha", "c", "migrate", target="beta", plan=plan)
        assert caught.value.hint
    assert pair.status("alpha", "c") == "running"
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    assert pair.find("beta", "c") is None
    assert wait_until(lambda: count(pair, BETA, port) > 0)


def test_a_picked_port_that_is_taken_there_is_picked_anew(pair: Pair) -> None:
    run(pair, "other", host="beta", host_port=61000)
    port = run(pair)["host_port"]
    assert port == 61000
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    before = count(pair, ALPHA, port)
    move(pair, "alpha", "beta")
    moved = pair.find("beta", "c")
    assert moved is not None and moved["ports"][0]["host_port"] != port
    assert count(pair, ALPHA, port) == before + 1


def test_in_a_lan_even_connections_through_the_port_go_on(pair: Pair) -> None:
    for name, address in (("alpha", "10.99.1.101"), ("beta", "10.99.1.102")):
        bridge = next(each for each in pair.client(name).get("/v1/networks") if each["name"] == "lan")[
            "bridge"
        ]
        with Route.in_namespace(pair.host(name).network) as route:
            route.add_address(bridge, address, 24)
    port = run(pair, network="lan", host_port=8080)["host_port"]
    assert wait_until(lambda: count(pair, ALPHA, port) > 0)
    with connect(pair, ALPHA, port) as old:
        before = next_number(old)
        move(pair, "alpha", "beta")
        assert next_number(old) == before + 1
        assert count(pair, ALPHA, port) == before + 2
        assert count(pair, BETA, port) == before + 3
        move(pair, "beta", "alpha")
        assert next_number(old) == before + 4

# SPDX-License-Identifier: Apache-2.0
"""Host ports: nobody's is taken twice, errors name the holder."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import InvalidSpec, PortInUse
from insula.model.spec import PortMapping
from insula.network import ports

LOOPBACK = "127.0.0.1"
MAPPINGS = st.builds(
    PortMapping,
    host_address=st.sampled_from(["0.0.0.0", LOOPBACK, "10.0.0.1"]),
    host_port=st.integers(1, 300),
    container_port=st.just(80),
    count=st.integers(1, 50),
    protocol=st.sampled_from(["tcp", "udp"]),
)


def _claims(mapping: PortMapping) -> set[tuple[str, str, int]]:
    every = ["0.0.0.0", LOOPBACK, "10.0.0.1"]
    addresses = every if mapping.host_address == "0.0.0.0" else [mapping.host_address]
    return {
        (mapping.protocol, address, mapping.host_port + step)
        for address in addresses
        for step in range(mapping.count)
    }


@given(MAPPINGS, MAPPINGS)
def test_overlap_is_what_a_set_of_sockets_says(one: PortMapping, other: PortMapping) -> None:
    assert ports.overlaps(one, other) == bool(_claims(one) & _claims(other))


@given(
    st.builds(
        PortMapping,
        host_address=st.text(max_size=12),
        host_port=st.integers(-5, 70000),
        container_port=st.integers(-5, 70000),
        count=st.integers(-5, 70000),
        protocol=st.sampled_from(["tcp", "udp", "sctp", ""]),
    )
)
def test_what_is_not_refused_is_within_bounds(mapping: PortMapping) -> None:
    try:
        ports.check([mapping])
    except InvalidSpec:
        return
    assert 1 <= mapping.container_port <= mapping.container_port + mapping.count - 1 <= 65535
    assert 0 <= mapping.host_port + mapping.count - 1 <= 65535


def test_a_held_port_names_its_holder() -> None:
    held = [ports.Taken(holder="web", mapping=PortMapping(host_port=8080, container_port=80))]
    wish = PortMapping(host_address=LOOPBACK, host_port=8078, count=5, container_port=80)
    with pytest.raises(PortInUse, match="container `web`"):
        ports.settle([wish], taken=held)


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_a_program_of_the_host_is_noticed(protocol: str, kind: socket.SocketKind) -> None:
    with socket.socket(type=kind) as program:
        program.bind((LOOPBACK, 0))
        if protocol == "tcp":
            program.listen()
        port = program.getsockname()[1]
        with pytest.raises(PortInUse, match=f"listens on port {port}"):
            ports.settle([PortMapping(host_port=port, container_port=80, protocol=protocol)], taken=[])


def test_picked_ports_differ_and_keep_the_order() -> None:
    wishes = [
        PortMapping(container_port=80),
        PortMapping(host_port=ports.PICK_FIRST, container_port=81),
        PortMapping(container_port=90, count=3),
    ]
    settled = ports.settle(wishes, taken=[])
    assert [each.container_port for each in settled] == [80, 81, 90]
    claims = [claim for each in settled for claim in _claims(each)]
    assert len(claims) == len(set(claims))
    assert all(each.host_port for each in settled)


def test_an_address_of_somebody_else_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="no address of this host"):
        ports.settle([PortMapping(host_address="192.0.2.77", host_port=8080, container_port=80)], taken=[])

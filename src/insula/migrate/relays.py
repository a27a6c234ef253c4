# SPDX-License-Identifier: Apache-2.0
"""Published ports after a move: the host that a container has left leads visitors on to where it is published now.

Noted before the commit, begun when the container's last trace has gone from here, and kept over restarts of insulad.  It ends
when the container comes back, when a container here needs the port (`network/relay.py`), or when the host that it went to says,
asked now and then, that it does not publish it any more (it has ended, or is gone).

A container in a LAN keeps its address, and its ports lead there as before: so even connections go on.  In a network of this
host's own its address leads nowhere else: connections through the port are reset, new ones are led on.

A relay is NAT: visitors come from this host's address.  IPv4 only.
"""

import logging
import socket
import threading
from ipaddress import IPv4Address

import msgspec

from insula.migrate.wire import Peers, Wire
from insula.model.errors import ContainerNotFound, HostNotFound, InsulaError
from insula.model.lifecycle import ALIVE
from insula.model.migration import Ports, Published
from insula.model.record import Attachment, ContainerRecord, HostRecord, NetworkRecord
from insula.model.spec import PortMapping
from insula.network.firewall import ANYWHERE, Relay
from insula.network.ports import check
from insula.network.relay import Gone, relays_into_lan
from insula.runtime.context import Runtime
from insula.runtime.undo import attempt, until_done

LOG = logging.getLogger(__name__)

RELAY = "relay:"
"""Journal, with the container's id: where its ports lead, a `_Note`."""
LOOK_SECONDS = 20.0
"""Between two questions whether a host still publishes them."""


class _Note(msgspec.Struct, frozen=True):
    host: str
    address: str
    """That it had here; empty if it keeps it."""
    relays: tuple[tuple[str, int, str, int], ...]
    address6: str = ""


def note_relay(
    runtime: Runtime, record: ContainerRecord, *, target: HostRecord, ports: tuple[PortMapping, ...]
) -> None:
    """Write down where the ports of a container that is about to leave will lead.

    ports: as the target says that it publishes them.  Raises: InvalidSpec for what are none.
    """
    if record.attachment is None or not record.ports:
        return
    network = runtime.store.get_network(record.attachment.network)
    found = _relays(record, record.attachment, network=network, target=target, ports=ports)
    if not found:
        return
    # In a LAN the address is not gone: it is somewhere else.
    address, address6 = (
        ("", "") if network.uplink else (record.attachment.address, record.attachment.address6)
    )
    lines = tuple((each.protocol, each.host_port, each.address, each.port) for each in found)
    note = _Note(host=target.name, address=address, relays=lines, address6=address6)
    runtime.store.write_journal(RELAY + record.id, msgspec.json.encode(note))


def _relays(
    record: ContainerRecord,
    attachment: Attachment,
    *,
    network: NetworkRecord,
    target: HostRecord,
    ports: tuple[PortMapping, ...],
) -> tuple[Relay, ...]:
    if network.uplink:
        return relays_into_lan(attachment, record.ports)
    check(ports)
    if len(ports) != len(record.ports):
        return ()
    try:
        address = _address_of(target)
    except OSError as error:
        LOG.warning("ports will not be led on", extra={"fields": {"host": target.name, "reason": str(error)}})
        return ()
    if not is_led_to(address):
        return ()
    return tuple(
        Relay(
            protocol=here.protocol,
            host_port=here.host_port + step,
            address=str(address),
            port=there.host_port + step,
        )
        for here, there in zip(record.ports, ports, strict=True)
        for step in range(here.count)
        if here.host_address == there.host_address == ANYWHERE
        and here.count == there.count
        and there.host_port
    )


def _address_of(host: HostRecord) -> IPv4Address:
    name, _, _port = host.address.rpartition(":")
    found = socket.getaddrinfo(name.strip("[]"), None, socket.AF_INET, socket.SOCK_STREAM)
    return IPv4Address(found[0][4][0])


def is_led_to(address: IPv4Address) -> bool:
    """Tell whether visitors may be led to an address: never to this host's own services at 127.0.0.1."""
    return not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved)


def begin_relay(runtime: Runtime, container_id: str) -> None:
    """Lead visitors on, as was noted, now that nothing of the container is left here."""
    if (gone := _gone(runtime, container_id)) is None:
        return
    attempt(runtime.networks.relay, gone)
    ports = " ".join(f"{each.host_port}/{each.protocol}" for each in gone.relays)
    LOG.info("ports are led on", extra={"fields": {"container": container_id[:12], "ports": ports}})


def forget_relay(runtime: Runtime, container_id: str) -> None:
    """Lead nobody on: it is here, or nowhere."""
    runtime.store.delete_journal(RELAY + container_id)
    attempt(runtime.networks.end_relay, container_id)


def _gone(runtime: Runtime, container_id: str) -> Gone | None:
    line = runtime.store.read_journal(RELAY + container_id)
    if line is None:
        return None
    note = msgspec.json.decode(line, type=_Note)
    relays = tuple(
        Relay(protocol=protocol, host_port=host_port, address=address, port=port)
        for protocol, host_port, address, port in note.relays
    )
    return Gone(container_id=container_id, address=note.address, relays=relays, address6=note.address6)


def begin_all(runtime: Runtime, peers: Peers) -> None:
    """At the start of insulad: lead on what is not here any more, and go on asking, in a thread of its own."""
    for container_id in _noted(runtime):
        if not _is_here(runtime, container_id):
            begin_relay(runtime, container_id)
    threading.Thread(target=_ask_on, args=(runtime, peers), name="relays", daemon=True).start()


def _ask_on(runtime: Runtime, peers: Peers) -> None:
    while not runtime.closing.wait(LOOK_SECONDS):
        until_done(runtime.closing, lambda: _ask_all(runtime, peers), what="ask where ports lead")


def _ask_all(runtime: Runtime, peers: Peers) -> None:
    for container_id in _noted(runtime):
        if not _is_here(runtime, container_id) and not _is_published(runtime, peers, container_id):
            LOG.info("ports are not led on any more", extra={"fields": {"container": container_id[:12]}})
            forget_relay(runtime, container_id)


def _noted(runtime: Runtime) -> list[str]:
    return [key.removeprefix(RELAY) for key in runtime.store.list_journal(RELAY)]


def _is_here(runtime: Runtime, container_id: str) -> bool:
    try:
        runtime.store.get_container(container_id)
    except ContainerNotFound:
        return False
    return True


def _is_published(runtime: Runtime, peers: Peers, container_id: str) -> bool:
    """Ask the host that a container went to.  One that does not answer may have it still; one that is not paired has not."""
    line = runtime.store.read_journal(RELAY + container_id)
    if line is None:
        return True  # forgotten meanwhile
    note = msgspec.json.decode(line, type=_Note)
    try:
        wire = Wire(peers.open(peers.find(note.host)))
    except HostNotFound:
        return False
    except (InsulaError, OSError):
        return True
    try:
        wire.send(Published(container=container_id))
        answer = wire.expect(Ports).ports
    except (InsulaError, OSError):
        return True
    finally:
        wire.close()
    if not note.address:  # in a LAN
        return bool(answer)
    published = {(each.protocol, port) for each in answer for port in _range(each)}
    return published >= {(protocol, port) for protocol, _here, _address, port in note.relays}


def _range(mapping: PortMapping) -> range:
    return range(mapping.host_port, mapping.host_port + mapping.count)


def answer_published(runtime: Runtime, question: Published) -> Ports:
    """Say which ports of this host lead to a container that came here: its own, or on to where it has gone since."""
    try:
        record = runtime.store.get_container(question.container)
    except ContainerNotFound:
        gone = _gone(runtime, question.container)
        return Ports(
            ports=tuple(
                PortMapping(protocol=each.protocol, host_port=each.host_port, container_port=each.port)
                for each in (gone.relays if gone is not None else ())
            )
        )
    return Ports(ports=record.ports if record.status in ALIVE else ())

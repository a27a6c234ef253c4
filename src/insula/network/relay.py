# SPDX-License-Identifier: Apache-2.0
"""Ports of this host that lead to containers which have moved to other hosts.  They give way to whoever needs the port.

Out of scope: the rules (`firewall.py`), how long a relay is wanted (`migrate/relays.py`).  For `Networks`, under its lock.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from insula.kernel import nft
from insula.kernel.nft import Element
from insula.model.errors import InvalidSpec
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import PortMapping
from insula.network import bridge, firewall
from insula.network.firewall import Relay


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A container that has moved away."""

    container_id: str
    address: str
    """That it had here; empty if it has it still, elsewhere in its LAN."""
    relays: tuple[Relay, ...]
    address6: str = ""


class Relays:
    """All relays of one daemon, by container."""

    def __init__(self, host_name: str) -> None:
        self._host_name = host_name
        self._gone: dict[str, Gone] = {}
        self._reused: set[str] = set()
        """Addresses of the gone that somebody else has here now."""

    @property
    def relays(self) -> tuple[Relay, ...]:
        return tuple(relay for each in self._gone.values() for relay in each.relays)

    @property
    def ports(self) -> tuple[PortMapping, ...]:
        """Ports of this host that lead on."""
        return tuple(
            PortMapping(protocol=each.protocol, host_port=each.host_port, container_port=each.port)
            for each in self.relays
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of containers that are gone, and of nobody else."""
        return tuple(address for each in self._gone.values() for address in self._left_by(each))

    def keep(self, gone: Gone, *, in_use: Collection[str]) -> list[Element]:
        """Note a container that has moved away.  in_use: addresses of containers that are here.

        Returns: what the firewall needs for it.
        """
        self._gone[gone.container_id] = gone
        for address in filter(None, (gone.address, gone.address6)):
            if address in in_use:
                self._reused.add(address)
            else:
                self._reused.discard(address)
        return self._elements(gone)

    def drop(self, container_id: str) -> None:
        """Lead nobody there any more.  That it is unknown is no error."""
        gone = self._gone.pop(container_id, None)
        if gone is not None:
            nft.delete_elements(self._elements(gone))

    def give_way(self, ports: Sequence[PortMapping]) -> None:
        """End the relays of ports that are wanted for a container of this host."""
        for gone in tuple(self._gone.values()):
            left = without_taken(gone, ports)
            given = [each for each in gone.relays if each not in left.relays]
            if given:
                self._gone[gone.container_id] = left
                nft.delete_elements(firewall.relay_elements(given, host_name=self._host_name))

    def give_back(self, attachment: Attachment) -> None:
        """Take note that somebody here has the addresses of one that is gone."""
        addresses = [each for each in (attachment.address, attachment.address6) if each in self.addresses]
        self._reused.update(addresses)
        nft.delete_elements(firewall.gone_elements(addresses, host_name=self._host_name))

    def _elements(self, gone: Gone) -> list[Element]:
        return [
            *firewall.relay_elements(gone.relays, host_name=self._host_name),
            *firewall.gone_elements(self._left_by(gone), host_name=self._host_name),
        ]

    def _left_by(self, gone: Gone) -> tuple[str, ...]:
        return tuple(each for each in (gone.address, gone.address6) if each and each not in self._reused)


def relays_into_lan(attachment: Attachment, ports: Iterable[PortMapping]) -> tuple[Relay, ...]:
    """Return how ports of a container in a LAN are published: the address leads to it wherever in that LAN it is."""
    return tuple(
        Relay(
            protocol=each.protocol,
            host_port=each.host_port + step,
            address=attachment.address,
            port=each.container_port + step,
        )
        for each in ports
        for step in range(each.count)
    )


def without_taken(gone: Gone, taken: Iterable[PortMapping]) -> Gone:
    """Return it without the relays whose ports containers of this host have."""
    held = {(each.protocol, each.host_port + step) for each in taken for step in range(each.count)}
    free = tuple(each for each in gone.relays if (each.protocol, each.host_port) not in held)
    return dataclasses.replace(gone, relays=free)


def check_lan_ports(wished: Iterable[PortMapping], network: NetworkRecord, *, name: str) -> None:
    """Refuse ports of a container in a LAN that this host could not lead there."""
    if any(each.host_address != firewall.ANYWHERE for each in wished):
        raise InvalidSpec(
            f"cannot publish ports of `{name}` at one address: network `{network.name}` has an uplink",
            hint="leave the address out",
        )
    lan = IPv4Network(network.subnet)
    if not any(each.overlaps(lan) for each in bridge.used_subnets()):
        raise InvalidSpec(
            f"cannot publish ports of `{name}`: network `{network.name}` has an uplink, and this host has no address or"
            f" route in {lan} to lead visitors there",
            hint="leave out -p and use the container's own address, or give this host an address in that LAN",
        )

# SPDX-License-Identifier: Apache-2.0
"""What a container that is held to a profile may begin with others: elements of sets in its host's firewall.

Judged without a connection's state, at the port that its frames come in by, because a container arrives in the middle of its
connections when it is carried: of TCP the first segment (SYN without ACK), of UDP each datagram that does not leave from a
port where the profile has it listen, of ICMP the echo request.  What stays in the container (127.0.0.1, its own address)
never comes here.  The rules themselves: `firewall.py`.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from insula.kernel.nft import Element, Family, pad
from insula.model.peer import ANYBODY, GATEWAY, Peer, parse_peer
from insula.model.record import Attachment
from insula.model.spec import AppliedProfile, Enforce

_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Whom a container may connect to, and from where it may answer datagrams."""

    outgoing: tuple[Peer, ...]
    serving: tuple[Peer, ...] = ()


class Entry(NamedTuple):
    """One element: the set, and the parts of its key after the interface."""

    set_name: str
    address: str = ""
    protocol: str = ""
    port: int | None = None

    def text(self, interface: str) -> str:
        """Return it as nft writes it."""
        parts = [f'"{interface}"', self.address, self.protocol, "" if self.port is None else str(self.port)]
        return " . ".join(filter(None, parts))

    def element(self, interface: str, *, table: str) -> Element:
        """Return it as netlink takes it."""
        key = interface.encode().ljust(_IFNAMSIZ, b"\0")
        if self.address:
            key += ip_address(self.address).packed
        if self.protocol:
            key += pad(bytes([_NUMBERS[self.protocol]]))
        if self.port is not None:
            key += pad(struct.pack("!H", self.port))
        return Element(Family.BRIDGE, table, self.set_name, key)


def limit_of(profile: AppliedProfile | None) -> Limit | None:
    """Return what of a profile the firewall holds a container to; None: nothing."""
    if profile is None or profile.enforce is not Enforce.DENY or profile.outgoing is None:
        return None
    serving = (parse_peer(each) for each in profile.serving)
    return Limit(
        outgoing=tuple(parse_peer(each) for each in profile.outgoing),
        serving=tuple(each for each in serving if "udp" in each.protocols and each.port),
    )


def entries(limit: Limit, attachment: Attachment) -> tuple[Entry, ...]:
    """Return every element of a container's limit; without IPv6 those of IPv4."""
    found = {Entry("limited")}
    found |= {Entry("serving", protocol="udp", port=each.port) for each in limit.serving}
    for peer in limit.outgoing:
        found.update(_entries_of(peer, attachment))
    return tuple(sorted(found, key=str))


def _entries_of(peer: Peer, attachment: Attachment) -> Iterator[Entry]:
    for protocol in peer.protocols:
        if peer.host == ANYBODY:
            if protocol in _NUMBERS:
                yield Entry("anywhere", protocol=protocol, port=peer.port)
            continue
        for host in _addresses(peer, attachment):
            six = "" if isinstance(ip_address(host), IPv4Address) else "6"
            if six and not attachment.address6:
                continue
            if protocol in _NUMBERS:
                yield Entry("may" + six, host, protocol, peer.port)
            else:
                yield Entry("pinged" + six, host)


def _addresses(peer: Peer, attachment: Attachment) -> Iterable[str]:
    if peer.host != GATEWAY:
        return (peer.host,)
    return filter(None, (attachment.gateway, attachment.gateway6))

# SPDX-License-Identifier: Apache-2.0
"""Whom a program connects to, and where it listens, in the words of a profile.  Pure.

    192.0.2.1:443/tcp   [2001:db8::1]:53/udp   gateway:53/udp   *:443/tcp   192.0.2.1:0/icmp

`gateway` is the container's own, which differs from host to host; `*` is everybody (written by people, never recorded).
Without a protocol: tcp and udp.  Names of DNS are none of these: who answers for a name could otherwise widen a profile.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

GATEWAY, ANYBODY = "gateway", "*"
PROTOCOLS = ("tcp", "udp", "icmp")
_FORM = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):([0-9]{1,5})(?:/([a-z]+))?")


class Peer(NamedTuple):
    """One entry.  protocols: one, or several where none is named."""

    host: str
    """An address, `gateway`, or `*`."""
    port: int
    protocols: tuple[str, ...]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.protocols[0]}" if len(self.protocols) == 1 else "")

    @property
    def is_own(self) -> bool:
        """Whether what goes there does not leave the container."""
        if self.host in (GATEWAY, ANYBODY):
            return False
        address = ip_address(self.host)
        return address.is_loopback or address.is_unspecified


def parse_peer(text: str) -> Peer:
    """Read an entry; an IPv4 address within IPv6 becomes what it is.  Raises: ValueError saying what is wrong."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"`{text[:80]}` is no address: as 192.0.2.1:443/tcp, [2001:db8::1]:53/udp, gateway:53/udp"
        )
    protocol = found[4]
    if protocol and protocol not in PROTOCOLS:
        raise ValueError(f"`{protocol[:20]}` of `{text[:80]}` is no protocol: tcp, udp or icmp")
    port = int(found[3])
    if port > 65535:
        raise ValueError(f"port {port} of `{text[:80]}` is not within 0 to 65535")
    protocols = (protocol,) if protocol else ("tcp", "udp")
    return Peer(_host(found[1] or found[2], text), port, protocols)


def _host(word: str, text: str) -> str:
    if word in (GATEWAY, ANYBODY):
        return word
    try:
        address: IPv4Address | IPv6Address = ip_address(word)
    except ValueError:
        raise ValueError(f"`{word[:80]}` of `{text[:80]}` is no address, nor `gateway` or `*`") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)

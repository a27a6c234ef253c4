# SPDX-License-Identifier: Apache-2.0
"""IPv6 of networks: which prefix a network has, and which address a container in it.

An address is the network's prefix and, as its last 32 bits, the container's IPv4 address: unique because that one is, so that
there is one lease for both, and the same on every host that has the network.  A network that nobody gave a prefix gets a
unique local /64 out of its tenant, name and IPv4 subnet, so that two hosts that make "the same" network agree without a word.

Whether this host has IPv6 at all is asked of the kernel; without it networks are IPv4 only.  Sources: RFC 4193 (unique local
addresses), RFC 4291 2.5.1 (link-local addresses of hardware addresses); ip-sysctl.rst (disable_ipv6).
"""

import hashlib
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError
from pathlib import Path

from insula.kernel.netlink import pack_mac
from insula.model.errors import InvalidSpec

PREFIX_LENGTH = 64
LONGEST_PREFIX = 96
"""32 bits are the container's."""
SHORTEST_PREFIX = 32
UNIQUE_LOCAL = IPv6Network("fc00::/7")
_DISABLED = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


def is_enabled() -> bool:
    """Tell whether this host's kernel gives IPv6 to new interfaces."""
    try:
        return _DISABLED.read_text(encoding="ascii").strip() == "0"
    except FileNotFoundError:
        return False


def parse_subnet(text: str) -> IPv6Network:
    """Return the network of a CIDR.  Raises: InvalidSpec if it is none, too small, too large or not for hosts."""
    try:
        subnet = IPv6Network(text, strict=True)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidSpec(f"cannot use subnet `{text}`: {error}", hint="write it as fd00:80:1::/64") from None
    if not SHORTEST_PREFIX <= subnet.prefixlen <= LONGEST_PREFIX:
        raise InvalidSpec(
            f"cannot use subnet `{text}`: its prefix is not between /{SHORTEST_PREFIX} and /{LONGEST_PREFIX}"
        )
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or int(subnet.network_address) == 0:
        raise InvalidSpec(f"cannot use subnet `{text}`: it is not for hosts", hint="use a part of fd00::/8")
    return subnet


def choose_subnet(tenant: str, name: str, *, subnet: IPv4Network, used: Iterable[IPv6Network]) -> IPv6Network:
    """Return the unique local /64 of a network; another one only if that is in use."""
    taken = tuple(used)
    attempt = 0
    while True:
        seed = f"{tenant}\0{name}\0{subnet}\0{attempt}".encode()
        start = b"\xfd" + hashlib.sha256(seed).digest()[:7] + bytes(8)
        found = IPv6Network((start, PREFIX_LENGTH))
        if not any(found.overlaps(each) for each in taken):
            return found
        attempt += 1


def choose_gateway(subnet: IPv6Network, *, wished: str, containers: IPv4Network) -> IPv6Address:
    """Return the wished gateway, or the subnet's first address.  containers: the IPv4 subnet.  Raises: InvalidSpec."""
    if not wished:
        return subnet.network_address + 1
    try:
        gateway = IPv6Address(wished)
    except (AddressValueError, ValueError):
        raise InvalidSpec(f"cannot use address `{wished}`: it is no IPv6 address") from None
    if gateway not in subnet or gateway == subnet.network_address:
        raise InvalidSpec(f"cannot use address `{wished}`: it is not in the network's subnet {subnet}")
    offset = int(gateway) - int(subnet.network_address)
    if offset < 1 << 32 and IPv4Address(offset) in containers:
        raise InvalidSpec(f"cannot use address `{wished}`: a container of {containers} would have it")
    return gateway


def address_of(subnet: IPv6Network, address: IPv4Address) -> IPv6Address:
    """Return the address of the container that has this one in the network's IPv4 subnet."""
    return subnet.network_address + int(address)


def link_local_of(mac: str) -> IPv6Address:
    """Return the address that the kernel gives an interface of this hardware address by itself."""
    packed = pack_mac(mac)
    return IPv6Address(
        b"\xfe\x80" + bytes(6) + bytes([packed[0] ^ 2]) + packed[1:3] + b"\xff\xfe" + packed[3:]
    )

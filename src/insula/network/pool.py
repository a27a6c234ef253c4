# SPDX-License-Identifier: Apache-2.0
"""Choose subnets, addresses and hardware addresses.  Pure: what is taken comes in, a choice or an error goes out.

Out of scope: remembering the choice (`attach.py` and its store).
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network, NetmaskValueError
from typing import TypeVar

from insula.model.errors import AddressPoolExhausted, Conflict, InvalidSpec, SubnetOverlaps

Subnet = TypeVar("Subnet", IPv4Network, IPv6Network)

#: The part of 10/8 that docker (172.17/16), kubernetes (10.96/12, 10.244/16), lxd and libvirt leave alone.
DEFAULT_POOL = IPv4Network("10.64.0.0/12")
DEFAULT_PREFIX_LENGTH = 24

#: A subnet needs a gateway and a container beside its own and its broadcast address.
LONGEST_PREFIX = 30
SHORTEST_PREFIX = 8


def parse_subnet(text: str) -> IPv4Network:
    """Return the network of a CIDR.  Raises: InvalidSpec if it is none, too small, too large or not for hosts."""
    try:
        subnet = IPv4Network(text, strict=True)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidSpec(f"cannot use subnet `{text}`: {error}", hint="write it as 10.80.1.0/24") from None
    if not SHORTEST_PREFIX <= subnet.prefixlen <= LONGEST_PREFIX:
        raise InvalidSpec(
            f"cannot use subnet `{text}`: its prefix is not between /{SHORTEST_PREFIX} and /{LONGEST_PREFIX}"
        )
    if (
        subnet.is_multicast
        or subnet.is_loopback
        or subnet.is_link_local
        or subnet.network_address.packed[0] in (0, 255)
    ):
        raise InvalidSpec(f"cannot use subnet `{text}`: it is not for hosts", hint="use a part of 10.0.0.0/8")
    return subnet


def parse_address(text: str, *, subnet: IPv4Network) -> IPv4Address:
    """Return an address that a host may have in a subnet.  Raises: InvalidSpec."""
    try:
        address = IPv4Address(text)
    except (AddressValueError, ValueError):
        raise InvalidSpec(f"cannot use address `{text}`: it is no IPv4 address") from None
    if address not in subnet:
        raise InvalidSpec(f"cannot use address `{text}`: it is not in the network's subnet {subnet}")
    if address in (subnet.network_address, subnet.broadcast_address):
        raise InvalidSpec(f"cannot use address `{text}`: it is the subnet's own or its broadcast address")
    return address


def choose_subnet(
    pool: IPv4Network,
    *,
    used: Iterable[IPv4Network],
    seed: str,
    prefix_length: int = DEFAULT_PREFIX_LENGTH,
) -> IPv4Network:
    """Return a subnet of the pool that overlaps none in use.

    The seed says where the search begins: so that the choice does not tell how many networks others have, and a network of
    the same tenant and name has, as a rule, the same subnet on each host.
    used: subnets of other networks, and what the host's own routes and addresses cover (without its default route).
    Raises: AddressPoolExhausted.
    """
    base, size = int(pool.network_address), 1 << (32 - prefix_length)
    count = pool.num_addresses // size
    taken: set[int] = set()
    for each in used:
        if each.overlaps(pool):
            first, last = (int(end) - base for end in (each.network_address, each.broadcast_address))
            taken.update(range(max(0, first // size), min(count, last // size + 1)))
    begin = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    for place in range(begin, begin + count):
        if place % count not in taken:
            return IPv4Network((base + place % count * size, prefix_length))
    raise AddressPoolExhausted(
        f"cannot choose a subnet: all of pool `{pool}` is in use",
        hint="remove unused networks, or name a --subnet",
    )


def check_subnet(subnet: Subnet, *, used: Iterable[Subnet]) -> None:
    """Refuse a wished subnet that overlaps one in use.  Raises: SubnetOverlaps; whose and which it is, is not told."""
    for other in used:
        if subnet.overlaps(other):
            raise SubnetOverlaps(
                f"cannot use subnet `{subnet}`: a part of it is in use on this host",
                hint="choose another --subnet, or leave it out to have a free one chosen",
            )


def choose_gateway(subnet: IPv4Network, *, wished: str = "") -> IPv4Address:
    """Return the wished gateway, or the subnet's first address."""
    return parse_address(wished, subnet=subnet) if wished else subnet.network_address + 1


def choose_address(
    subnet: IPv4Network,
    *,
    gateway: IPv4Address,
    taken: Collection[IPv4Address],
    last: IPv4Address | None = None,
) -> IPv4Address:
    """Return the next free address after the one handed out last, so that a freed one rests as long as possible.

    Raises: AddressPoolExhausted.
    """
    busy = {int(each) for each in taken if each in subnet} | {int(gateway)}
    for candidate in _candidates(subnet, last=last):
        if candidate not in busy:
            return IPv4Address(candidate)
    raise AddressPoolExhausted(
        f"cannot lease an address: all {subnet.num_addresses - 3} of subnet `{subnet}` are in use",
        hint="remove containers that are not needed, or create a network with a larger --subnet",
    )


def check_address(
    wished: str, *, subnet: IPv4Network, gateway: IPv4Address, taken: Collection[IPv4Address]
) -> IPv4Address:
    """Return a wished address if it can be had.  Raises: InvalidSpec, Conflict."""
    address = parse_address(wished, subnet=subnet)
    if address == gateway:
        raise InvalidSpec(f"cannot use address `{address}`: it is the network's gateway")
    if address in taken:
        raise Conflict(f"cannot use address `{address}`: another container holds it")
    return address


def mac_of(address: IPv4Address, *, owner: str) -> str:
    """Return a hardware address: locally administered, unicast, the same each time for the same owner.

    Four bytes of the address (unique within a network), and one of the owner's id, so that an address that is used
    again has a new one.  owner: a container's or network's id.
    """
    salt = hashlib.sha256(owner.encode()).digest()[:1]
    return (b"\x02" + salt + address.packed).hex(":")


def mac_of_bridge(owner: str) -> str:
    """Return a hardware address for a bridge: locally administered, unicast, of 40 bits of the owner's hash."""
    return (b"\x02" + hashlib.sha256(owner.encode()).digest()[:5]).hex(":")


def first_rest(subnet: IPv4Network, *, host_name: str) -> IPv4Address:
    """Return where a host begins to lease in a subnet that other hosts lease from too: each at another place."""
    spread = int.from_bytes(hashlib.sha256(host_name.encode()).digest()[:4])
    return subnet.network_address + 1 + spread % (subnet.num_addresses - 2)


def _round_up(value: int, size: int) -> int:
    return (value + size - 1) // size * size


def _candidates(subnet: IPv4Network, *, last: IPv4Address | None) -> Iterator[int]:
    first, end = int(subnet.network_address) + 1, int(subnet.broadcast_address)
    start = int(last) + 1 if last is not None and last in subnet else first
    yield from range(start, end)
    yield from range(first, min(start, end))

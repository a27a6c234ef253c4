# SPDX-License-Identifier: Apache-2.0
"""Host ports of published container ports: checked, picked, never taken twice.

Out of scope: leading packets (`firewall.py`).  Ports of other containers are known from their records; services of the
host itself are found by really binding the port for a moment, since DNAT would silently take their visitors away.
"""

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from msgspec.structs import replace

from insula.model.errors import Exhausted, InvalidSpec, PortInUse
from insula.model.spec import PortMapping
from insula.network import ipv6

#: Where a port is picked when the user names none: above the range the kernel gives to outgoing connections (32768-60999).
PICK_FIRST, PICK_LAST = 61000, 65535

#: One container may publish at most this many ports; each is an element of the firewall's map.
MOST_PORTS = 4096

_ANYWHERE, _ANYWHERE6 = "0.0.0.0", "::"
_SOCKET_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A range of host ports that a container holds."""

    holder: str
    """The container's id, or what people call it."""
    mapping: PortMapping
    is_foreign: bool = False
    """Another tenant's container: its name is not told."""


def check(mappings: Iterable[PortMapping]) -> None:
    """Refuse words that no host could grant.  Raises: InvalidSpec."""
    total = 0
    for each in mappings:
        total += each.count
        if each.protocol not in _SOCKET_TYPES:
            raise InvalidSpec(f"cannot publish `{describe(each)}`: protocol is neither tcp nor udp")
        if each.count < 1:
            raise InvalidSpec(f"cannot publish `{describe(each)}`: the range is empty")
        if not 0 < each.container_port <= 65536 - each.count:
            raise InvalidSpec(f"cannot publish `{describe(each)}`: container ports go from 1 to 65535")
        if not 0 <= each.host_port <= 65536 - each.count:
            raise InvalidSpec(f"cannot publish `{describe(each)}`: host ports go from 1 to 65535")
        _check_host_address(each)
    if total > MOST_PORTS:
        raise InvalidSpec(f"cannot publish {total} ports of one container: the limit is {MOST_PORTS}")


def settle(
    mappings: Iterable[PortMapping], *, taken: Iterable[Taken], avoided: Iterable[PortMapping] = ()
) -> tuple[PortMapping, ...]:
    """Return the mappings with every host port filled in; none of them is in use.

    avoided: what is not picked, but given to who names it.
    Raises: InvalidSpec; PortInUse naming the holder; Exhausted if no free range is left to pick.
    """
    wished = tuple(mappings)
    check(wished)
    held = list(taken)
    unpicked = [Taken(holder="", mapping=each) for each in avoided]
    settled: dict[int, PortMapping] = {}
    in_order = sorted(range(len(wished)), key=lambda index: wished[index].host_port == 0)
    for index in in_order:
        mapping = wished[index]
        if mapping.host_port:
            _refuse_if_taken(mapping, held=held)
        else:
            mapping = _pick(mapping, held=[*held, *unpicked])
        held.append(Taken(holder="", mapping=mapping))
        settled[index] = mapping
    return tuple(settled[index] for index in range(len(wished)))


def count(mappings: Iterable[PortMapping]) -> int:
    """Return how many ports these are."""
    return sum(each.count for each in mappings)


def describe(mapping: PortMapping) -> str:
    """Return the mapping as people write it: `0.0.0.0:8000-8003:80-83/tcp`."""
    last = mapping.count - 1
    host = f"{mapping.host_port}-{mapping.host_port + last}" if last > 0 else f"{mapping.host_port}"
    inside = (
        f"{mapping.container_port}-{mapping.container_port + last}"
        if last > 0
        else f"{mapping.container_port}"
    )
    at = f"[{mapping.host_address}]" if ":" in mapping.host_address else mapping.host_address
    return f"{at}:{host}:{inside}/{mapping.protocol}"


def overlaps(one: PortMapping, other: PortMapping) -> bool:
    """Tell whether two mappings want the same host port at the same address."""
    if one.protocol != other.protocol:
        return False
    if not _same_place(one.host_address, other.host_address):
        return False
    return one.host_port < other.host_port + other.count and other.host_port < one.host_port + one.count


def _same_place(one: str, other: str) -> bool:
    if one == other or _ANYWHERE in (one, other):
        return True
    return _ANYWHERE6 in (one, other) and ":" in one and ":" in other


def is_free_on_host(address: str, *, port: int, protocol: str) -> bool:
    """Tell whether nobody on this host listens there, by binding it for a moment; 0.0.0.0 means IPv6, too, if there is any.

    Raises: OSError EADDRNOTAVAIL if the address is not this host's.
    """
    if address == _ANYWHERE and ipv6.is_enabled() and not _is_free_at(_ANYWHERE6, port, protocol=protocol):
        return False
    return _is_free_at(address, port, protocol=protocol)


def _is_free_at(address: str, port: int, *, protocol: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, _SOCKET_TYPES[protocol] | socket.SOCK_CLOEXEC) as trial:
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            # Connections that linger in TIME_WAIT are no listener.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def _check_host_address(mapping: PortMapping) -> None:
    try:
        address = ip_address(mapping.host_address)
    except ValueError:
        raise InvalidSpec(f"cannot publish `{describe(mapping)}`: the host address is no address") from None
    is_odd = address.version == 4 and address.packed[0] in (0, 255) and str(address) != _ANYWHERE
    if address.is_multicast or is_odd or (address.version == 6 and address.is_link_local):
        raise InvalidSpec(f"cannot publish `{describe(mapping)}`: the host address is not for hosts")


def _refuse_if_taken(mapping: PortMapping, *, held: list[Taken]) -> None:
    foreign = [other.mapping for other in held if other.is_foreign]
    for other in held:
        if not other.is_foreign and overlaps(mapping, other.mapping):
            raise PortInUse(
                f"cannot publish `{describe(mapping)}`: the port is held by {_describe_holder(other)}",
                hint=_CURE,
            )
    for port in range(mapping.host_port, mapping.host_port + mapping.count):
        one = replace(mapping, host_port=port, count=1)
        # Another tenant's container is a program of this host like any other: that there is one is not told.
        if any(overlaps(one, each) for each in foreign) or not _is_free(mapping, port=port):
            raise PortInUse(
                f"cannot publish `{describe(mapping)}`: a program of this host listens on port {port}",
                hint=_CURE,
            )


def _describe_holder(other: Taken) -> str:
    return f"container `{other.holder}`" if other.holder else "another published port of this container"


def _pick(mapping: PortMapping, *, held: list[Taken]) -> PortMapping:
    first = PICK_FIRST
    while first + mapping.count - 1 <= PICK_LAST:
        candidate = PortMapping(
            host_address=mapping.host_address,
            host_port=first,
            container_port=mapping.container_port,
            count=mapping.count,
            protocol=mapping.protocol,
        )
        busy = [other.mapping for other in held if overlaps(candidate, other.mapping)]
        if busy:
            first = max(each.host_port + each.count for each in busy)
        elif all(_is_free(candidate, port=port) for port in range(first, first + mapping.count)):
            return candidate
        else:
            first += 1
    raise Exhausted(
        f"cannot pick {mapping.count} free host port(s) for {mapping.container_port}/{mapping.protocol}:"
        f" {PICK_FIRST}-{PICK_LAST} are in use",
        hint="name a host port, or remove containers that publish ports",
    )


def _is_free(mapping: PortMapping, *, port: int) -> bool:
    try:
        return is_free_on_host(mapping.host_address, port=port, protocol=mapping.protocol)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidSpec(
                f"cannot publish `{describe(mapping)}`: {mapping.host_address} is no address of this host"
            ) from None
        raise


_CURE = "choose another host port, or leave it out to have one picked"

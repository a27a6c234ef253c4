# SPDX-License-Identifier: Apache-2.0
"""Interfaces, addresses, routes and neighbours of a network namespace, by rtnetlink.

Out of scope: which networks exist and who may talk to whom (`network/`).  Own code instead of a library because it is
on the path of every start: the spawner makes the pair of interfaces, and the first process of the container configures
its end, without importing more than this.  Errors are OSError: the request, the interface in backticks, the kernel's
reason and, where it gave one, its explanation.

Sources: rtnetlink(7), veth(4); `include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,veth}.h`.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

from insula.kernel import libc
from insula.kernel.netlink_message import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Socket,
    attribute,
    nested,
    number,
    number_of,
    parse_attributes,
    string_of,
    text,
)

CLONE_NEWNET = 0x40000000

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_DELNEIGH, RTM_GETNEIGH = 29, 30

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_PROTINFO, IFLA_LINKINFO, IFLA_NET_NS_PID, IFLA_STATS64 = 12, 18, 19, 23
IFLA_NET_NS_FD, IFLA_EXT_MASK = 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_MCAST_SNOOPING = 1, 23
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_ISOLATED = 4, 8, 33
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 0, 253, 1
NDA_DST, NDA_LLADDR = 1, 2

#: IFNAMSIZ - 1
NAME_BYTES = 15

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


class Link(NamedTuple):
    ifindex: int
    name: str
    mac: str
    up: bool
    master: int
    """Index of the bridge it is a port of, or 0."""
    kind: str
    """bridge, veth, …; empty for hardware and lo."""


class Address(NamedTuple):
    ifindex: int
    address: str
    prefix_length: int


class RouteEntry(NamedTuple):
    destination: str
    """As `10.0.0.0/8`; the default route is `0.0.0.0/0`."""
    gateway: str
    ifindex: int
    table: int


class Neighbour(NamedTuple):
    ifindex: int
    address: str
    mac: str
    state: int


class Counters(NamedTuple):
    """Seen from the interface asked: a host's end of a veth receives what the container sends."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


@contextmanager
def namespace_entered(netns_fd: int) -> Iterator[None]:
    """Have the calling thread in another network namespace, for as long as the block lasts.  No await within it."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(netns_fd, CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


class Route:
    """A conversation with the kernel about one network namespace: that of the thread that opened it."""

    def __init__(self) -> None:
        self._socket = Socket()

    @classmethod
    def in_namespace(cls, netns_fd: int) -> Self:
        """Open it in another network namespace.  The calling thread is back in its own when this returns."""
        with namespace_entered(netns_fd):
            return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # -- interfaces ------------------------------------------------------------------------------------------------

    def index_of(self, name: str) -> int:
        """Return the index of an interface.  Raises: OSError ENODEV if there is none."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _name(name) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        [answer, *_] = self._socket.ask(RTM_GETLINK, flags=0, body=body, what=f"RTM_GETLINK `{name}`")
        index: int = _LINK.unpack_from(answer)[2]
        return index

    def links(self) -> list[Link]:
        """List the interfaces."""
        body = _LINK.pack(0, 0, 0, 0, 0) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        return [
            _link_of(each)
            for each in self._socket.ask(RTM_GETLINK, flags=NLM_F_DUMP, body=body, what="RTM_GETLINK")
        ]

    def create_bridge(self, name: str, *, mac: str | None = None) -> None:
        """Create a bridge, up.  mac: fixed for good; without one it changes as ports come and go."""
        data = nested(
            IFLA_INFO_DATA, number(IFLA_BR_FORWARD_DELAY, 0), attribute(IFLA_BR_MCAST_SNOOPING, b"\0")
        )
        body = (
            _LINK.pack(0, 0, 0, IFF_UP, IFF_UP)
            + _name(name)
            + (attribute(IFLA_ADDRESS, pack_mac(mac)) if mac else b"")
            + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), data)
        )
        self._create(name, body)

    def create_veth(
        self,
        name: str,
        *,
        peer: str,
        peer_netns_fd: int | None = None,
        peer_pid: int | None = None,
        master: str | int | None = None,
        mac: str | None = None,
        peer_mac: str | None = None,
        mtu: int | None = None,
    ) -> None:
        """Create a pair of interfaces in one message: our end up and a port of `master`, the peer in its namespace.

        The peer is down (the kernel refuses to create it up: ENOTCONN): `configure_inside` raises it.
        peer: name of the other end, which appears directly in the namespace of a descriptor or of a process.
        master: name or index of the bridge.  mac is of our end, peer_mac of the other, mtu of both.
        Raises: OSError EEXIST if either name is taken; ENODEV if there is no such master; nothing is left behind.
        """
        inside = _LINK.pack(0, 0, 0, 0, 0) + _name(peer) + _hardware(peer_mac, mtu=mtu)
        if peer_netns_fd is not None:
            inside += number(IFLA_NET_NS_FD, peer_netns_fd)
        elif peer_pid is not None:
            inside += number(IFLA_NET_NS_PID, peer_pid)
        body = _LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + _name(name) + _hardware(mac, mtu=mtu)
        if master is not None:
            body += number(IFLA_MASTER, self.index_of(master) if isinstance(master, str) else master)
        data = nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, inside))
        self._create(name, body + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), data))

    def delete(self, name: str) -> None:
        """Delete an interface; of a pair both ends go.  Raises: OSError ENODEV if there is none."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _name(name)
        self._socket.ask(RTM_DELLINK, flags=0, body=body, what=f"RTM_DELLINK `{name}`")

    def set_up(self, name: str) -> None:
        self._set(name, flags=IFF_UP)

    def set_down(self, name: str) -> None:
        self._set(name, change=IFF_UP)

    def set_master(self, name: str, master: str | None) -> None:
        """Make an interface a port of a bridge; None takes it out."""
        self._set(name, number(IFLA_MASTER, self.index_of(master) if master else 0))

    def set_mac(self, name: str, mac: str) -> None:
        self._set(name, attribute(IFLA_ADDRESS, pack_mac(mac)))

    def set_mtu(self, name: str, mtu: int) -> None:
        self._set(name, number(IFLA_MTU, mtu))

    def rename(self, name: str, new_name: str) -> None:
        """Rename an interface.  Some kernels want it down for that (EBUSY)."""
        self._set(name, _name(new_name), index=self.index_of(name))

    def move_to_namespace(self, name: str, netns_fd: int) -> None:
        """Move an interface; it arrives down and without addresses."""
        self._set(name, number(IFLA_NET_NS_FD, netns_fd))

    def set_port(
        self,
        name: str,
        *,
        isolated: bool | None = None,
        learning: bool | None = None,
        hairpin: bool | None = None,
    ) -> None:
        """Change a bridge port: isolated ports reach only those that are not; None leaves a flag as it is."""
        flags = (
            (IFLA_BRPORT_ISOLATED, isolated),
            (IFLA_BRPORT_LEARNING, learning),
            (IFLA_BRPORT_MODE, hairpin),
        )
        packed = [attribute(kind, bytes([value])) for kind, value in flags if value is not None]
        body = _LINK.pack(socket.AF_BRIDGE, 0, self.index_of(name), 0, 0) + nested(IFLA_PROTINFO, *packed)
        self._socket.ask(RTM_SETLINK, flags=0, body=body, what=f"RTM_SETLINK `{name}`")

    def counters(self, name: str) -> Counters:
        """Read what an interface has counted since it was made."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _name(name)
        [answer, *_] = self._socket.ask(RTM_GETLINK, flags=0, body=body, what=f"RTM_GETLINK `{name}`")
        stats = parse_attributes(answer, _LINK.size).get(IFLA_STATS64, bytes(32))
        rx_packets, tx_packets, rx_bytes, tx_bytes = struct.unpack_from("=4Q", stats)
        return Counters(rx_bytes=rx_bytes, rx_packets=rx_packets, tx_bytes=tx_bytes, tx_packets=tx_packets)

    # -- addresses, routes, neighbours -------------------------------------------------------------------------------

    def add_address(self, name: str, address: str, prefix: int) -> None:
        """Give an interface an address.  Raises: OSError EEXIST if it has it."""
        self._change_address(
            RTM_NEWADDR, name, address=address, prefix=prefix, flags=NLM_F_CREATE | NLM_F_EXCL
        )

    def delete_address(self, name: str, address: str, prefix: int) -> None:
        self._change_address(RTM_DELADDR, name, address=address, prefix=prefix, flags=0)

    def addresses(self, name: str | None = None) -> list[Address]:
        """List the addresses of an interface; without a name, of all."""
        wanted = self.index_of(name) if name else None
        body = _ADDRESS.pack(0, 0, 0, 0, 0)
        answers = self._socket.ask(RTM_GETADDR, flags=NLM_F_DUMP, body=body, what="RTM_GETADDR")
        found = [_address_of(each) for each in answers]
        return [each for each in found if wanted is None or each.ifindex == wanted]

    def add_default_route(self, gateway: str) -> None:
        self.add_route("::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway)

    def add_route(self, destination: str, *, gateway: str = "", name: str = "") -> None:
        """Add or replace a route to a CIDR, through a gateway or an interface or both."""
        network, _, prefix = destination.partition("/")
        family, packed = pack_address(network)
        length = int(prefix) if prefix else 8 * len(packed)
        scope = RT_SCOPE_UNIVERSE if gateway or family == socket.AF_INET6 else RT_SCOPE_LINK
        body = _ROUTE.pack(family, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0)
        body += attribute(RTA_DST, packed) if length else b""
        body += attribute(RTA_GATEWAY, pack_address(gateway)[1]) if gateway else b""
        body += number(RTA_OIF, self.index_of(name)) if name else b""
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._socket.ask(RTM_NEWROUTE, flags=flags, body=body, what=f"RTM_NEWROUTE `{destination}`")

    def routes(self) -> list[RouteEntry]:
        """List the IPv4 and IPv6 routes of every table."""
        body = _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)
        answers = self._socket.ask(RTM_GETROUTE, flags=NLM_F_DUMP, body=body, what="RTM_GETROUTE")
        families = (socket.AF_INET, socket.AF_INET6)
        return [_route_of(each) for each in answers if each and each[0] in families]

    def neighbours(self) -> list[Neighbour]:
        """List what is known of who has which address."""
        body = _NEIGHBOUR.pack(0, 0, 0, 0, 0)
        answers = self._socket.ask(RTM_GETNEIGH, flags=NLM_F_DUMP, body=body, what="RTM_GETNEIGH")
        families = (socket.AF_INET, socket.AF_INET6)
        return [_neighbour_of(each) for each in answers if each and each[0] in families]

    # -- private ------------------------------------------------------------------------------------------------------

    def _create(self, name: str, body: bytes) -> None:
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._socket.ask(RTM_NEWLINK, flags=flags, body=body, what=f"RTM_NEWLINK `{name}`")

    def _set(self, name: str, extra: bytes = b"", *, flags: int = 0, change: int = 0, index: int = 0) -> None:
        body = _LINK.pack(0, 0, index, flags, flags | change) + (b"" if index else _name(name)) + extra
        self._socket.ask(RTM_SETLINK, flags=0, body=body, what=f"RTM_SETLINK `{name}`")

    def _change_address(self, kind: int, name: str, *, address: str, prefix: int, flags: int) -> None:
        family, packed = pack_address(address)
        is_ipv6 = family == socket.AF_INET6
        body = _ADDRESS.pack(family, prefix, IFA_F_NODAD if is_ipv6 else 0, 0, self.index_of(name))
        body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        if not is_ipv6 and prefix < 31:
            host_bits = (1 << (32 - prefix)) - 1
            body += attribute(IFA_BROADCAST, (int.from_bytes(packed) | host_bits).to_bytes(4))
        request = "RTM_NEWADDR" if kind == RTM_NEWADDR else "RTM_DELADDR"
        self._socket.ask(kind, flags=flags, body=body, what=f"{request} `{address}/{prefix}` on `{name}`")


def configure_inside(
    route: Route,
    *,
    interface: str,
    address: str,
    prefix_length: int,
    gateway: str = "",
    address6: str = "",
    prefix_length6: int = 0,
    gateway6: str = "",
    mtu: int | None = None,
) -> None:
    """Configure a container's namespace, from inside: `lo` up, the addresses, the default routes.

    route: opened in that namespace.  gateway: empty for a network without a way out; address6: for one without IPv6.
    """
    route.set_up("lo")
    route.add_address(interface, address, prefix_length)
    if address6:
        route.add_address(interface, address6, prefix_length6)
    if mtu is not None:
        route.set_mtu(interface, mtu)
    route.set_up(interface)
    for each in (gateway, gateway6):
        if each:
            route.add_default_route(each)


def pack_mac(mac: str) -> bytes:
    """Return the six bytes of `02:00:…`.  Raises: ValueError if it is none."""
    packed = bytes.fromhex(mac.replace(":", ""))
    if len(packed) != 6:
        raise ValueError(f"not a hardware address: {mac!r}")
    return packed


def pack_address(address: str) -> tuple[int, bytes]:
    """Return the family and the bytes of an IP address.  Raises: OSError if it is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _name(name: str) -> bytes:
    if not 0 < len(name.encode()) <= NAME_BYTES or "/" in name:
        raise ValueError(f"not an interface name: {name!r}")
    return text(IFLA_IFNAME, name)


def _hardware(mac: str | None, *, mtu: int | None) -> bytes:
    return (attribute(IFLA_ADDRESS, pack_mac(mac)) if mac else b"") + (number(IFLA_MTU, mtu) if mtu else b"")


def _link_of(answer: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(answer)
    found = parse_attributes(answer, _LINK.size)
    return Link(
        ifindex=index,
        name=string_of(found.get(IFLA_IFNAME)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
        master=number_of(found.get(IFLA_MASTER)),
        kind=string_of(parse_attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND)),
    )


def _address_of(answer: bytes) -> Address:
    family, prefix, _, _, index = _ADDRESS.unpack_from(answer)
    found = parse_attributes(answer, _ADDRESS.size)
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or bytes(4)
    return Address(ifindex=index, address=socket.inet_ntop(family, packed), prefix_length=prefix)


def _route_of(answer: bytes) -> RouteEntry:
    family, length, _, _, table, *_ = _ROUTE.unpack_from(answer)
    found = parse_attributes(answer, _ROUTE.size)
    anywhere = bytes(16 if family == socket.AF_INET6 else 4)
    gateway = found.get(RTA_GATEWAY)
    return RouteEntry(
        destination=f"{socket.inet_ntop(family, found.get(RTA_DST, anywhere))}/{length}",
        gateway=socket.inet_ntop(family, gateway) if gateway else "",
        ifindex=number_of(found.get(RTA_OIF)),
        table=number_of(found.get(RTA_TABLE)) or table,
    )


def _neighbour_of(answer: bytes) -> Neighbour:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(answer)
    found = parse_attributes(answer, _NEIGHBOUR.size)
    return Neighbour(
        ifindex=index,
        address=socket.inet_ntop(family, found.get(NDA_DST, bytes(16 if family == socket.AF_INET6 else 4))),
        mac=found.get(NDA_LLADDR, b"").hex(":"),
        state=state,
    )

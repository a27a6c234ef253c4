# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom, as one nftables table per daemon and family.  `render` is pure; `apply` is one transaction.

    from                  to                                     verdict
    container             its own network                        free
    container             another network (any tenant's)         only a published port
    container             outside                                NAT; an internal network: refused
    container             its gateway: DNS, ICMP echo            free
    container             any other service of this host         refused
    container             127.0.0.0/8 of this host               dropped
    container             169.254.0.0/16 (metadata services)     refused: what answers there takes it for this host
    outside, this host    a published port                       led to the container
    outside, this host    a relayed port                         led on, by NAT, to a container that is elsewhere
    outside               any other address of a container       dropped
    outside               a container that has moved away        TCP: reset, else dropped
    a network's uplink    containers of that network             free: they stand in that LAN, no NAT, no filter
    any container         frames with another's address          dropped at its port (bridge family, all networks)
    any container         answers of a DHCP server               dropped there, too: leases are not a container's to give
    one held to a profile  whom the profile lacks                refused; dropped if it stays in the network or its LAN
    a network's containers more than FLOWS connections at a time  refused: the table of connections is the whole host's

The same holds for IPv6, where this host has it (lines that begin with `6|` below); a container sends from its own address or
its link-local one only, tells the place of no other (neighbour advertisements), and is no router (router advertisements and
redirects are dropped).  Where there is no IPv6, and in networks without, its frames are dropped at the port, as tagged ones are.
Containers with unique local addresses go out by NAT, others as they are: who names a public prefix has it routed here.
A published port 53 never takes the questions of containers to their gateway.
A published port answers at every address of this host and at 127.0.0.1 (by DNAT in the output hook; no process of ours
stands in the way), and to other containers of the same network (hairpin).  Not at ::1, from where IPv6 lets nothing out
(there is no route_localnet for it): there the host refuses, and who asked for `localhost` goes on to 127.0.0.1.

Elements that come and go with containers are put in and out by netlink (`kernel/nft.py`); `render` writes all of them,
so that the whole can be made again at any time.  Bridged frames may or may not pass the inet hooks (br_netfilter), so
each rule here must be right in both cases, and none judges by `ct state invalid`: connections arrive in the middle
when a container does.  Priorities: nft(8).
"""

import hashlib
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from insula.kernel import nft
from insula.kernel.netlink import pack_mac
from insula.kernel.nft import Element, Family, pad
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import PortMapping
from insula.network import ipv6
from insula.network.bridge import interface_prefix
from insula.network.limit import Limit, entries

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
ANYWHERE, ANYWHERE6 = "0.0.0.0", "::"
_IFNAMSIZ = 16
FLOWS = 8192
"""Tracked connections of one network that leave it: an eighth of the smallest usual nf_conntrack_max.  For each new one the others are counted: some 20 ns each."""
MARK = 0x1A50_11D0
"""Of a frame that a profile lacks, from its port to where it is refused; no other has it."""
LIMIT_SETS = ("limited", "serving", "anywhere", "may", "may6", "pinged", "pinged6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A container's published ports."""

    attachment: Attachment
    ports: tuple[PortMapping, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A port of this host that leads to another machine's: to a container in a LAN, or to where one has gone (IPv4 only).

    Visitors come there from this host's address.  Not at 127.0.0.1, from where nothing gets out.
    """

    protocol: str
    host_port: int
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A container that is held to a profile."""

    attachment: Attachment
    limit: Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the ruleset is made from."""

    host_name: str
    networks: tuple[NetworkRecord, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    limits: tuple[Limited, ...] = ()
    publications: tuple[Publication, ...] = ()
    relays: tuple[Relay, ...] = ()
    gone: tuple[str, ...] = ()
    """Addresses of containers that have moved to other hosts: connections that still come are reset."""
    has_ipv6: bool = False


def can_filter_ipv6() -> bool:
    """Tell whether this host has IPv6, and an nft that takes the rules for it (raw payloads in sets: nft 1.0.2 or so)."""
    if not ipv6.is_enabled():
        return False
    try:
        nft.check(render(State(host_name="probe", has_ipv6=True)))
    except nft.NftRefused:
        return False
    return True


def table_name(host_name: str) -> str:
    return "insula_" + hashlib.sha256(host_name.encode()).hexdigest()[:8]


def apply(state: State) -> None:
    """Replace the daemon's tables by what the state says, in one transaction."""
    nft.apply(render(state))


def remove(host_name: str) -> None:
    """Take the daemon's tables away.  Only when no container runs."""
    nft.delete_table(Family.BRIDGE, table_name(host_name))
    nft.delete_table(Family.INET, table_name(host_name))


def attachment_elements(attachment: Attachment, *, host_name: str) -> list[Element]:
    """Return what lets a container's frames pass its port."""
    table = table_name(host_name)
    port = attachment.interface.encode().ljust(_IFNAMSIZ, b"\0")
    mac = pad(pack_mac(attachment.mac))
    key = port + mac + IPv4Address(attachment.address).packed
    found = [Element(Family.BRIDGE, table, "allowed", key)]
    for each in _addresses6(attachment):
        found.append(Element(Family.BRIDGE, table, "allowed6", port + mac + each.packed))
        found.append(Element(Family.BRIDGE, table, "places6", port + each.packed))
    return found


def limit_elements(limited: Limited, *, host_name: str) -> list[Element]:
    """Return what holds a container to its profile."""
    attachment, table = limited.attachment, table_name(host_name)
    return [each.element(attachment.interface, table=table) for each in entries(limited.limit, attachment)]


def _addresses6(attachment: Attachment) -> tuple[IPv6Address, ...]:
    if not attachment.address6:
        return ()
    return IPv6Address(attachment.address6), ipv6.link_local_of(attachment.mac)


def port_elements(publication: Publication, *, host_name: str) -> list[Element]:
    """Return what leads published ports to their container."""
    table = table_name(host_name)
    found: list[Element] = []
    for lead in _leads(publication):
        key = pad(bytes([PROTOCOLS[lead.protocol]])) + _port(lead.host_port)
        at = ip_address(lead.at).packed if lead.at else b""
        data = ip_address(lead.target).packed + _port(lead.port)
        found.append(Element(Family.INET, table, lead.map_name, at + key, data))
    return found


def relay_elements(relays: Iterable[Relay], *, host_name: str) -> list[Element]:
    """Return what leads ports on."""
    table = table_name(host_name)
    found: list[Element] = []
    for each in relays:
        protocol, address = pad(bytes([PROTOCOLS[each.protocol]])), IPv4Address(each.address).packed
        here, there = _port(each.host_port), _port(each.port)
        found.append(Element(Family.INET, table, "relays", protocol + here, address + there))
        found.append(Element(Family.INET, table, "relayed", address + protocol + there))
    return found


def gone_elements(addresses: Iterable[str], *, host_name: str) -> list[Element]:
    """Return what resets the connections of containers that have moved away."""
    table = table_name(host_name)
    packed = [ip_address(each).packed for each in addresses]
    return [Element(Family.INET, table, "gone" if len(each) == 4 else "gone6", each) for each in packed]


class _Lead(NamedTuple):
    """One element of one of the four maps of ports."""

    map_name: str
    at: str
    """Address of this host; empty: all."""
    protocol: str
    host_port: int
    target: str
    port: int

    def __str__(self) -> str:
        at = f"{ip_address(self.at)} . " if self.at else ""
        return f"{at}{self.protocol} . {self.host_port} : {ip_address(self.target)} . {self.port}"


def _leads(publication: Publication) -> Iterator[_Lead]:
    address, address6 = publication.attachment.address, publication.attachment.address6
    for mapping in publication.ports:
        if mapping.protocol not in PROTOCOLS:
            continue
        for step in range(mapping.count):
            host_port, port = int(mapping.host_port + step), int(mapping.container_port + step)
            at = "" if mapping.host_address in (ANYWHERE, ANYWHERE6) else mapping.host_address
            suffix = "_at" if at else ""
            if ":" not in mapping.host_address:
                yield _Lead("ports" + suffix, at, mapping.protocol, host_port, address, port)
            if address6 and (mapping.host_address == ANYWHERE or ":" in mapping.host_address):
                yield _Lead("ports6" + suffix, at, mapping.protocol, host_port, address6, port)


def render(state: State) -> str:
    """Return the whole ruleset as nft text.  Only parsed addresses, numbers and names of our own making stand in it."""
    name = table_name(state.host_name)
    routed = [each for each in state.networks if not each.uplink]
    routed6 = [each for each in routed if each.subnet6]
    leads = [each for publication in state.publications for each in _leads(publication)]
    values = {
        "NAME": name,
        "PREFIX": interface_prefix(state.host_name),
        "BRIDGES": _elements(f'"{_own(each.bridge)}"' for each in routed),
        "PAIRS": _elements(f'"{_own(each.bridge)}" . "{each.bridge}"' for each in routed),
        "INTERNAL": _elements(f'"{_own(each.bridge)}"' for each in routed if each.internal),
        "FLOWS": str(FLOWS),
        "MARK": hex(MARK),
        "SUBNETS": _elements(str(IPv4Network(each.subnet)) for each in routed),
        "GATEWAYS": _elements(f'"{_own(each.bridge)}" . {IPv4Address(each.gateway)}' for each in routed),
        "LOCALS6": _elements(str(each) for each in _nat_subnets6(routed6)),
        "GATEWAYS6": _elements(f'"{_own(each.bridge)}" . {IPv6Address(each.gateway6)}' for each in routed6),
        "RELAYS": _elements(
            f"{each.protocol} . {int(each.host_port)} : {IPv4Address(each.address)} . {int(each.port)}"
            for each in state.relays
            if each.protocol in PROTOCOLS
        ),
        "RELAYED": _elements(
            f"{IPv4Address(each.address)} . {each.protocol} . {int(each.port)}"
            for each in state.relays
            if each.protocol in PROTOCOLS
        ),
        "GONE": _elements(str(IPv4Address(each)) for each in state.gone if ":" not in each),
        "GONE6": _elements(str(IPv6Address(each)) for each in state.gone if ":" in each),
        "ALLOWED": _elements(_allowed(each) for each in state.attachments),
        "ALLOWED6": _elements(_allowed6(state.attachments)),
        "PLACES6": _elements(_places6(state.attachments)),
    }
    limits = [
        (entry.set_name, entry.text(_own(each.attachment.interface)))
        for each in state.limits
        for entry in entries(each.limit, each.attachment)
    ]
    for word in LIMIT_SETS:
        values[word.upper()] = _elements(text for name, text in limits if name == word)
    for word in ("ports", "ports_at", "ports6", "ports6_at"):
        values[word.upper()] = _elements(str(each) for each in leads if each.map_name == word)
    text = _SIX.sub(r"  \1" if state.has_ipv6 else "", _RULESET)
    for word, value in values.items():
        text = text.replace(f"%{word}%", value)
    return text


def _elements(parts: Iterable[str]) -> str:
    joined = ", ".join(sorted(set(parts)))
    return f"elements = {{ {joined} }}" if joined else ""


def _nat_subnets6(networks: Iterable[NetworkRecord]) -> Iterator[IPv6Network]:
    subnets = (IPv6Network(each.subnet6) for each in networks)
    return (each for each in subnets if each.subnet_of(ipv6.UNIQUE_LOCAL))


def _allowed(attachment: Attachment) -> str:
    mac = pack_mac(attachment.mac).hex(":")
    return f'"{_own(attachment.interface)}" . {mac} . {IPv4Address(attachment.address)}'


def _allowed6(attachments: Iterable[Attachment]) -> Iterator[str]:
    for each in attachments:
        for address in _addresses6(each):
            yield f'"{_own(each.interface)}" . {pack_mac(each.mac).hex(":")} . {address}'


def _places6(attachments: Iterable[Attachment]) -> Iterator[str]:
    for each in attachments:
        for address in _addresses6(each):
            yield f'"{_own(each.interface)}" . {int(address):#x}'


def _own(name: str) -> str:
    if not name.replace("-", "").isalnum() or not name.isascii() or len(name) >= _IFNAMSIZ:
        raise ValueError(f"not an interface name of ours: {name!r}")
    return name


def _port(number: int) -> bytes:
    return pad(struct.pack("!H", number))


_RULESET = """\
add table inet %NAME%
delete table inet %NAME%
add table bridge %NAME%
delete table bridge %NAME%

table inet %NAME% {
    set bridges { type ifname; %BRIDGES% }
    set internal { type ifname; %INTERNAL% }
    set inside { type ifname . ifname; %PAIRS% }
    set gateways { type ifname . ipv4_addr; %GATEWAYS% }
    set subnets { type ipv4_addr; flags interval; %SUBNETS% }
    set flows { type ifname; size 65535; flags dynamic; }
    map ports { type inet_proto . inet_service : ipv4_addr . inet_service; %PORTS% }
    map ports_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; %PORTS_AT% }
    map relays { type inet_proto . inet_service : ipv4_addr . inet_service; %RELAYS% }
    set relayed { type ipv4_addr . inet_proto . inet_service; %RELAYED% }
    set gone { type ipv4_addr; %GONE% }
6|  set gone6 { type ipv6_addr; %GONE6% }
6|  set gateways6 { type ifname . ipv6_addr; %GATEWAYS6% }
6|  set locals6 { type ipv6_addr; flags interval; %LOCALS6% }
6|  map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; %PORTS6% }
6|  map ports6_at { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; %PORTS6_AT% }

    chain loopback {
        type filter hook prerouting priority raw; policy accept;
        iifname @bridges meta mark %MARK% meta l4proto tcp reject with tcp reset
        iifname @bridges meta mark %MARK% reject with icmpx type admin-prohibited
        iifname @bridges ip saddr 127.0.0.0/8 drop
        iifname @bridges ip daddr 127.0.0.0/8 drop
6|      iifname @bridges ip6 saddr ::1 drop
6|      iifname @bridges ip6 daddr ::1 drop
    }

    chain lead_in {
        type nat hook prerouting priority dstnat; policy accept;
        iifname . ip daddr @gateways th dport 53 accept
        dnat ip to ip daddr . meta l4proto . th dport map @ports_at
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
        fib daddr type local dnat ip to meta l4proto . th dport map @relays
6|      iifname . ip6 daddr @gateways6 th dport 53 accept
6|      dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
6|      fib daddr type local dnat ip6 to meta l4proto . th dport map @ports6
    }

    chain lead_local {
        type nat hook output priority -100; policy accept;
        dnat ip to ip daddr . meta l4proto . th dport map @ports_at
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
        ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @relays
6|      dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
6|      ip6 daddr != ::1 fib daddr type local dnat ip6 to meta l4proto . th dport map @ports6
    }

    chain pass {
        type filter hook forward priority filter; policy accept;
        ip daddr @gone oifname @bridges meta l4proto tcp reject with tcp reset
6|      ip6 daddr @gone6 oifname @bridges meta l4proto tcp reject with tcp reset
        iifname . oifname @inside accept
        iifname @bridges ct state new add @flows { iifname ct count over %FLOWS% } reject with icmpx type admin-prohibited
        iifname @bridges goto judge
        oifname @bridges goto judge
    }

    chain judge {
        ct state established,related accept
        ct status dnat accept
        oifname @bridges drop
        iifname @internal reject with icmpx type admin-prohibited
        ip daddr 169.254.0.0/16 reject with icmpx type admin-prohibited
        accept
    }

    chain host {
        type filter hook input priority filter; policy accept;
        iifname @bridges goto services
    }

    chain services {
        ct state established,related accept
        add @flows { iifname ct count over %FLOWS% } drop
        iifname . ip daddr @gateways meta l4proto { tcp, udp } th dport 53 accept
        iifname . ip daddr @gateways icmp type echo-request accept
6|      iifname . ip6 daddr @gateways6 meta l4proto { tcp, udp } th dport 53 accept
6|      iifname . ip6 daddr @gateways6 icmpv6 type echo-request accept
6|      icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
6|      ip6 daddr ff00::/8 drop
        reject with icmpx type admin-prohibited
    }

    chain lead_out {
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat ip daddr . meta l4proto . th dport @relayed masquerade
        oifname @bridges ip saddr 127.0.0.0/8 masquerade
        oifname @bridges ip saddr @subnets ct status dnat masquerade
        oifname != @bridges ip saddr @subnets masquerade
6|      oifname @bridges ip6 saddr @locals6 ct status dnat masquerade
6|      oifname != @bridges ip6 saddr @locals6 masquerade
    }
}

table bridge %NAME% {
    set allowed { type ifname . ether_addr . ipv4_addr; %ALLOWED% }
6|  set allowed6 { type ifname . ether_addr . ipv6_addr; %ALLOWED6% }
6|  set places6 { typeof iifname . @th,64,128; %PLACES6% }
    set limited { type ifname; %LIMITED% }
    set serving { type ifname . inet_proto . inet_service; %SERVING% }
    set anywhere { type ifname . inet_proto . inet_service; %ANYWHERE% }
    set may { type ifname . ipv4_addr . inet_proto . inet_service; %MAY% }
    set pinged { type ifname . ipv4_addr; %PINGED% }
6|  set may6 { type ifname . ipv6_addr . inet_proto . inet_service; %MAY6% }
6|  set pinged6 { type ifname . ipv6_addr; %PINGED6% }

    chain enter {
        type filter hook prerouting priority dstnat; policy accept;
        iifname @limited jump judge
        iifname "%PREFIX%*" goto honest
    }

    chain stay {
        type filter hook forward priority filter; policy accept;
        meta mark %MARK% drop
    }

    chain judge {
        ether type arp return
        meta l4proto tcp tcp flags & (syn | ack) != syn return
        iifname . meta l4proto . udp sport @serving return
        iifname . meta l4proto . th dport @anywhere return
        ether type ip iifname . ip daddr . meta l4proto . th dport @may return
        icmp type != echo-request return
        ether type ip meta l4proto 1 iifname . ip daddr @pinged return
        ip frag-off & 0x1fff != 0 return
6|      ether type ip6 iifname . ip6 daddr . meta l4proto . th dport @may6 return
6|      icmpv6 type != echo-request return
6|      ether type ip6 meta l4proto 58 iifname . ip6 daddr @pinged6 return
        meta mark set %MARK%
    }

    chain honest {
        udp sport 67 udp dport 68 drop
        ether type ip iifname . ether saddr . ip saddr @allowed accept
        ether type arp arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @allowed iifname . ether saddr . arp saddr ip @allowed accept
6|      ether type ip6 goto honest6
        drop
    }
6|
6|  chain honest6 {
6|      icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect, router-renumbering } drop
6|      icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @places6 drop
6|      ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @places6 accept
6|      iifname . ether saddr . ip6 saddr @allowed6 accept
6|      drop
6|  }
}
"""
_SIX = re.compile(r"^6\|(.*\n)", re.MULTILINE)
"""The lines that only a host with IPv6 has."""

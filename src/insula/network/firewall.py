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
    outside               any other address of a container       dropped
    a network's uplink    containers of that network             free: they stand in that LAN, no NAT, no filter
    any container         frames with another's address          dropped at its port (bridge family, all networks)
    any container         answers of a DHCP server               dropped there, too: leases are not a container's to give

Containers speak IPv4 and ARP only; IPv6 and tagged frames are dropped at the port, since no rule here would bind them.
A published port 53 never takes the questions of containers to their gateway.
A published port answers at every address of this host and at 127.0.0.1 (by DNAT in the output hook; no process of ours
stands in the way), and to other containers of the same network (hairpin).

Elements that come and go with containers are put in and out by netlink (`kernel/nft.py`); `render` writes all of them,
so that the whole can be made again at any time.  Bridged frames may or may not pass the inet hooks (br_netfilter), so
each rule here must be right in both cases, and none judges by `ct state invalid`: connections arrive in the middle
when a container does.  Priorities: nft(8).
"""

import hashlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from insula.kernel import nft
from insula.kernel.netlink import pack_mac
from insula.kernel.nft import Element, Family, pad
from insula.model.record import Attachment, NetworkRecord
from insula.model.spec import PortMapping
from insula.network.bridge import interface_prefix

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_ANYWHERE = "0.0.0.0"
_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A container's published ports."""

    attachment: Attachment
    ports: tuple[PortMapping, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the ruleset is made from."""

    host_name: str
    networks: tuple[NetworkRecord, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    publications: tuple[Publication, ...] = ()


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
    key = (
        attachment.interface.encode().ljust(_IFNAMSIZ, b"\0")
        + pad(pack_mac(attachment.mac))
        + IPv4Address(attachment.address).packed
    )
    return [Element(Family.BRIDGE, table_name(host_name), "allowed", key)]


def port_elements(publication: Publication, *, host_name: str) -> list[Element]:
    """Return what leads published ports to their container."""
    table = table_name(host_name)
    target = IPv4Address(publication.attachment.address).packed
    found: list[Element] = []
    for mapping in publication.ports:
        for step in range(mapping.count):
            key = pad(bytes([PROTOCOLS[mapping.protocol]])) + _port(mapping.host_port + step)
            data = target + _port(mapping.container_port + step)
            if mapping.host_address == _ANYWHERE:
                found.append(Element(Family.INET, table, "ports", key, data))
            else:
                at = IPv4Address(mapping.host_address).packed
                found.append(Element(Family.INET, table, "ports_at", at + key, data))
    return found


def render(state: State) -> str:
    """Return the whole ruleset as nft text.  Only parsed addresses, numbers and names of our own making stand in it."""
    name = table_name(state.host_name)
    routed = [each for each in state.networks if not each.uplink]
    values = {
        "NAME": name,
        "PORTS": interface_prefix(state.host_name),
        "BRIDGES": _elements(f'"{_own(each.bridge)}"' for each in routed),
        "PAIRS": _elements(f'"{_own(each.bridge)}" . "{each.bridge}"' for each in routed),
        "INTERNAL": _elements(f'"{_own(each.bridge)}"' for each in routed if each.internal),
        "SUBNETS": _elements(str(IPv4Network(each.subnet)) for each in routed),
        "GATEWAYS": _elements(f'"{_own(each.bridge)}" . {IPv4Address(each.gateway)}' for each in routed),
        "PUBLISHED": _elements(_published(state.publications, is_anywhere=True)),
        "PUBLISHED_AT": _elements(_published(state.publications, is_anywhere=False)),
        "ALLOWED": _elements(_allowed(each) for each in state.attachments),
    }
    text = _RULESET
    for word, value in values.items():
        text = text.replace(f"%{word}%", value)
    return text


def _elements(parts: Iterable[str]) -> str:
    joined = ", ".join(sorted(set(parts)))
    return f"elements = {{ {joined} }}" if joined else ""


def _published(publications: Iterable[Publication], *, is_anywhere: bool) -> Iterable[str]:
    for publication in publications:
        target = IPv4Address(publication.attachment.address)
        for mapping in publication.ports:
            if (mapping.host_address == _ANYWHERE) != is_anywhere or mapping.protocol not in PROTOCOLS:
                continue
            at = "" if is_anywhere else f"{IPv4Address(mapping.host_address)} . "
            for step in range(mapping.count):
                host_port, port = int(mapping.host_port + step), int(mapping.container_port + step)
                yield f"{at}{mapping.protocol} . {host_port} : {target} . {port}"


def _allowed(attachment: Attachment) -> str:
    mac = pack_mac(attachment.mac).hex(":")
    return f'"{_own(attachment.interface)}" . {mac} . {IPv4Address(attachment.address)}'


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
    map ports { type inet_proto . inet_service : ipv4_addr . inet_service; %PUBLISHED% }
    map ports_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; %PUBLISHED_AT% }

    chain loopback {
        type filter hook prerouting priority raw; policy accept;
        iifname @bridges ip saddr 127.0.0.0/8 drop
        iifname @bridges ip daddr 127.0.0.0/8 drop
    }

    chain lead_in {
        type nat hook prerouting priority dstnat; policy accept;
        iifname . ip daddr @gateways th dport 53 accept
        dnat ip to ip daddr . meta l4proto . th dport map @ports_at
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
    }

    chain lead_local {
        type nat hook output priority -100; policy accept;
        dnat ip to ip daddr . meta l4proto . th dport map @ports_at
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
    }

    chain pass {
        type filter hook forward priority filter; policy accept;
        iifname . oifname @inside accept
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
        iifname . ip daddr @gateways meta l4proto { tcp, udp } th dport 53 accept
        iifname . ip daddr @gateways icmp type echo-request accept
        reject with icmpx type admin-prohibited
    }

    chain lead_out {
        type nat hook postrouting priority srcnat; policy accept;
        oifname @bridges ip saddr 127.0.0.0/8 masquerade
        oifname @bridges ip saddr @subnets ct status dnat masquerade
        oifname != @bridges ip saddr @subnets masquerade
    }
}

table bridge %NAME% {
    set allowed { type ifname . ether_addr . ipv4_addr; %ALLOWED% }

    chain enter {
        type filter hook prerouting priority dstnat; policy accept;
        iifname "%PORTS%*" goto honest
    }

    chain honest {
        udp sport 67 udp dport 68 drop
        ether type ip iifname . ether saddr . ip saddr @allowed accept
        ether type arp arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @allowed iifname . ether saddr . arp saddr ip @allowed accept
        drop
    }
}
"""

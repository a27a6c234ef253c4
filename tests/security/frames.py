# SPDX-License-Identifier: Apache-2.0
"""Frames that a hostile container sends, by name: each carries a mark, so that a frame that came through is known again.

Sources: RFC 826 (ARP), RFC 791, RFC 768, RFC 2131 (DHCP), RFC 4861 (neighbour discovery), IEEE 802.1Q, 802.1D.
"""

import socket
import struct
from dataclasses import dataclass

EVERYBODY = b"\xff" * 6


@dataclass(frozen=True, kw_only=True)
class Place:
    """Somebody on the bridge."""

    mac: bytes
    address: bytes

    @classmethod
    def of(cls, attachment: dict[str, str]) -> "Place":
        return cls(
            mac=bytes.fromhex(attachment["mac"].replace(":", "")),
            address=socket.inet_aton(attachment["address"]),
        )


def ethernet(source: bytes, kind: int, body: bytes, *, to: bytes = EVERYBODY) -> bytes:
    return to + source + struct.pack("!H", kind) + body


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def udp(source: bytes, target: bytes, data: bytes, *, ports: tuple[int, int] = (9, 9)) -> bytes:
    """Return an IPv4 packet with a UDP datagram, whose sum of zero means none."""
    length = 28 + len(data)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 1, 0, 64, 17, 0, source, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + struct.pack("!HHHH", *ports, 8 + len(data), 0) + data


def arp(operation: int, *, sender: Place, mark: bytes) -> bytes:
    body = struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, sender.mac, sender.address, EVERYBODY, sender.address
    )
    return body + mark


def icmp6(source: bytes, kind: int, body: bytes) -> bytes:
    """Return an IPv6 packet to all nodes.  Its sum is wrong: what judges frames does not look at it."""
    data = struct.pack("!BBH", kind, 0, 0) + body
    head = struct.pack("!IHBB", 0x60000000, len(data), 58, 255)
    return head + source + socket.inet_pton(socket.AF_INET6, "ff02::1") + data


LINK_LOCAL = socket.inet_pton(socket.AF_INET6, "fe80::1")
ANY = bytes(4)
ALL = b"\xff" * 4


def hostile(own: Place, victim: Place, gateway: Place, *, mark: bytes) -> dict[str, bytes]:
    """Return every frame that must end at the sender's port."""
    plain = udp(own.address, ALL, mark)
    return {
        "mac-of-another": ethernet(victim.mac, 0x0800, plain),
        "mac-invented": ethernet(b"\x02\x00\x00\x00\x00\x99", 0x0800, plain),
        "mac-of-everybody": ethernet(EVERYBODY, 0x0800, plain),
        "address-of-another": ethernet(own.mac, 0x0800, udp(victim.address, ALL, mark)),
        "address-of-the-gateway": ethernet(own.mac, 0x0800, udp(gateway.address, ALL, mark)),
        "address-of-loopback": ethernet(own.mac, 0x0800, udp(socket.inet_aton("127.0.0.1"), ALL, mark)),
        "address-none": ethernet(own.mac, 0x0800, udp(ANY, ALL, mark)),
        "arp-for-the-gateway": ethernet(own.mac, 0x0806, arp(2, sender=Place(mac=own.mac, address=gateway.address), mark=mark)),
        "arp-for-another": ethernet(own.mac, 0x0806, arp(1, sender=Place(mac=own.mac, address=victim.address), mark=mark)),
        "arp-with-another-mac": ethernet(own.mac, 0x0806, arp(2, sender=Place(mac=victim.mac, address=own.address), mark=mark)),
        "arp-of-another": ethernet(victim.mac, 0x0806, arp(2, sender=victim, mark=mark)),
        "rarp": ethernet(own.mac, 0x8035, arp(3, sender=own, mark=mark)),
        "router-advertisement": ethernet(own.mac, 0x86DD, icmp6(LINK_LOCAL, 134, bytes(12) + mark)),
        "neighbour-advertisement": ethernet(own.mac, 0x86DD, icmp6(LINK_LOCAL, 136, bytes(20) + mark)),
        "ipv6": ethernet(own.mac, 0x86DD, icmp6(LINK_LOCAL, 128, mark)),
        "dhcp-offer": ethernet(own.mac, 0x0800, udp(own.address, ALL, mark, ports=(67, 68))),
        "dhcp-request": ethernet(own.mac, 0x0800, udp(ANY, ALL, mark, ports=(68, 67))),
        "vlan": ethernet(own.mac, 0x8100, struct.pack("!HH", 5, 0x0800) + plain),
        "vlan-priority": ethernet(own.mac, 0x8100, struct.pack("!HH", 0, 0x0800) + plain),
        "vlan-twice": ethernet(own.mac, 0x88A8, struct.pack("!HHHH", 5, 0x8100, 6, 0x0800) + plain),
        "spanning-tree": ethernet(own.mac, 38, b"\x42\x42\x03" + bytes(35) + mark, to=bytes.fromhex("0180c2000000")),
        "lldp": ethernet(own.mac, 0x88CC, bytes(20) + mark, to=bytes.fromhex("0180c200000e")),
        "eapol": ethernet(own.mac, 0x888E, bytes(20) + mark),
        "pppoe": ethernet(own.mac, 0x8863, bytes(20) + mark),
        "mpls": ethernet(own.mac, 0x8847, bytes(4) + plain),
        "pause": ethernet(own.mac, 0x8808, bytes(20) + mark, to=bytes.fromhex("0180c2000001")),
    }  # fmt: skip

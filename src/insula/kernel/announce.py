# SPDX-License-Identifier: Apache-2.0
"""Tell the neighbours where an address lives now.

A container that arrives on another host keeps its address and its hardware address: switches and bridges on the way
learn its new place from the frames sent here.  Out of scope: what they send meanwhile (`hold`), when to do so (`migrate`).

Sources: packet(7); RFC 826 and RFC 5227 (ARP announcement); RFC 4861, 7.2.6 (unsolicited neighbor advertisement);
`include/uapi/linux/{if_packet,virtio_net,filter}.h`.
"""

import socket
import struct

from insula.kernel import packet
from insula.kernel.netlink import namespace_entered, pack_address, pack_mac

ETH_P_ARP = 0x0806
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ARPHRD_ETHER = 1
ARPOP_REQUEST, ARPOP_REPLY = 1, 2
ND_NEIGHBOR_ADVERT = 136
ND_NA_FLAG_OVERRIDE = 0x20000000
ND_OPT_TARGET_LINKADDR = 2

_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")

#: The largest frame: 64 KiB that segmentation offload has not cut yet, its headers, and struct virtio_net_hdr.


def announce(interface: str, *, mac: str, address: str) -> None:
    """Tell all neighbours on an interface that `address` is at `mac`.

    IPv4: an ARP announcement in both forms, since some neighbours update by requests only and some by replies only.
    IPv6: an unsolicited neighbor advertisement with the override flag.  Sent with `mac` as source, so that bridges and
    switches learn the place.  Raises: OSError ENODEV, ENETDOWN.
    """
    family, packed = pack_address(address)
    hardware = pack_mac(mac)
    if family == socket.AF_INET6:
        frames = [_neighbor_advertisement(hardware, packed)]
    else:
        frames = [_arp(ARPOP_REQUEST, hardware, address=packed), _arp(ARPOP_REPLY, hardware, address=packed)]
    with packet.sender(interface) as sender:
        for frame in frames:
            sender.send(frame)


def announce_inside(netns_fd: int, interface: str, *, mac: str, address: str) -> None:
    """Announce as the container itself does, through its own port.

    Only so does this host's bridge learn the place as well: it may have learned before, from what the container said on
    the other host, that the hardware address is out on the uplink, and drops what comes from there.
    """
    with namespace_entered(netns_fd):
        announce(interface, mac=mac, address=address)


def _arp(operation: int, mac: bytes, *, address: bytes) -> bytes:
    target = bytes(6) if operation == ARPOP_REQUEST else _BROADCAST
    header = _BROADCAST + mac + struct.pack("!HHHBBH", ETH_P_ARP, ARPHRD_ETHER, ETH_P_IP, 6, 4, operation)
    return header + mac + address + target + address


def _neighbor_advertisement(mac: bytes, address: bytes) -> bytes:
    option = struct.pack("!BB", ND_OPT_TARGET_LINKADDR, 1) + mac
    body = struct.pack("!I", ND_NA_FLAG_OVERRIDE) + address + option
    length = 4 + len(body)
    pseudo = address + _ALL_NODES + struct.pack("!II", length, socket.IPPROTO_ICMPV6)
    checksum = _checksum(pseudo + struct.pack("!BBH", ND_NEIGHBOR_ADVERT, 0, 0) + body)
    packet = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_ICMPV6, 255) + address + _ALL_NODES
    message = struct.pack("!BBH", ND_NEIGHBOR_ADVERT, 0, checksum) + body
    return _ALL_NODES_MAC + mac + struct.pack("!H", ETH_P_IPV6) + packet + message


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF

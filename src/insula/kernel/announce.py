# SPDX-License-Identifier: Apache-2.0
"""Tell the neighbours where an address lives now, and keep what they send while it moves.

A container that arrives on another host keeps its address and its hardware address: switches and bridges on the way
learn its new place from the frames sent here.  Frames that come for it before it runs are kept by the kernel in the
buffer of a packet socket, bounded, and given to it when it does.  Out of scope: when to do so (`migrate`).

Sources: packet(7); RFC 826 and RFC 5227 (ARP announcement); RFC 4861, 7.2.6 (unsolicited neighbor advertisement);
`include/uapi/linux/{if_packet,virtio_net,filter}.h`.
"""

import errno
import os
import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

from insula.kernel import libc
from insula.kernel.netlink import pack_address, pack_mac

ETH_P_ALL = 0x0003
ETH_P_ARP = 0x0806
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ARPHRD_ETHER = 1
ARPOP_REQUEST, ARPOP_REPLY = 1, 2
ND_NEIGHBOR_ADVERT = 136
ND_NA_FLAG_OVERRIDE = 0x20000000
ND_OPT_TARGET_LINKADDR = 2

SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33

_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")

#: The largest frame: 64 KiB that segmentation offload has not cut yet, its headers, and struct virtio_net_hdr.
_FRAME_BYTES = 65536 + 64 + 10


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
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sender:
        _bind(sender, interface, protocol=0)
        for frame in frames:
            sender.send(frame)


class Held(NamedTuple):
    """What became of the frames that came during a hold."""

    delivered: int
    lost: int
    """Over the bound, or refused by the interface."""


class PacketHold:
    """Keep the frames for one hardware address that an interface sees, until they are given to their owner.

    interface: the bridge port on which they come (an uplink), or the bridge.  The kernel keeps them in the socket's
    buffer, so that nothing needs to run meanwhile; what exceeds `limit_bytes` is lost, as by any full queue.
    Offload headers are kept too: a frame between two local namespaces has no checksum yet and may be 64 KiB long.
    """

    def __init__(self, interface: str, *, mac: str, limit_bytes: int = 8 << 20) -> None:
        self._mac = pack_mac(mac)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            _attach_filter(self._socket, self._mac)
            self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, limit_bytes)
            self._socket.settimeout(0)
            _bind(self._socket, interface, protocol=ETH_P_ALL)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the hold; what was kept and not given is dropped."""
        self._socket.close()

    def reinject(self, interface: str, *, limit_packets: int = 65536) -> Held:
        """Send what was kept out of an interface, in order: the host's end of a veth gives it to the container."""
        delivered = lost = 0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sender:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            _bind(sender, interface, protocol=0)
            for _ in range(limit_packets):
                frame = self._next()
                if frame is None:
                    break
                try:
                    sender.send(frame)
                    delivered += 1
                except OSError as error:
                    if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE, errno.EINVAL):
                        raise
                    lost += 1
        return Held(delivered=delivered, lost=lost + self._dropped())

    def _next(self) -> bytes | None:
        try:
            return self._socket.recv(_FRAME_BYTES)
        except BlockingIOError:
            return None

    def _dropped(self) -> int:
        dropped: int
        _, dropped = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return dropped


def _bind(packet_socket: socket.socket, interface: str, *, protocol: int) -> None:
    try:
        packet_socket.bind((interface, protocol))
    except OSError as error:
        raise OSError(error.errno, f"bind: {os.strerror(error.errno or 0)}", interface) from None


def _attach_filter(packet_socket: socket.socket, mac: bytes) -> None:
    # Classic BPF on the first six bytes: load 4 at 2, compare, load 2 at 0, compare, take all; else nothing.
    high, low = struct.unpack("!HI", mac)
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 2),
            (0x15, 0, 3, low),
            (0x28, 0, 0, 0),
            (0x15, 0, 1, high),
            (0x06, 0, 0, 0xFFFFFFFF),
            (0x06, 0, 0, 0),
        )
    )
    kept = bytearray(program)
    description = struct.pack("HxxxxxxQ", 6, libc.address_of(kept))
    packet_socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, description)


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

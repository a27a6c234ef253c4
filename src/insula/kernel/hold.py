# SPDX-License-Identifier: Apache-2.0
"""Keep what neighbours send to a container while it moves, and give it to the container when it runs again.

A frame that is lost in the pause costs its sender a retransmission, 200 ms and more for TCP, and for ever for UDP.  So,
while the container's port is off its bridge, a packet socket on the bridge keeps every frame for its hardware address,
and every question for its addresses (ARP, neighbour solicitation), in the kernel's memory, bounded; nothing needs to run meanwhile:

    source    start_with_callers when a rule begins to drop who wants to connect (`runtime/callers.py`)
              start before the port leaves the bridge
              failed: port back on the bridge, `replay` into it.  Committed: `frames` until the target has resumed and
              announced itself and a little longer, each batch by `pack` over the wire
    target    `unpack`, `replay` into the host's end of the container's veth, when the container runs

The bridge is made promiscuous by the socket, because a bridge shows its own device only what is meant for the host; what
the host itself sends is seen as outgoing.  Frames keep their offload header: one between two local namespaces has no
checksum yet and may be 64 KiB long.  A frame may come twice (to the port before it left the bridge, and from here), as on
any network.  Out of scope: when to do so (`migrate`).

Sources: packet(7); `include/uapi/linux/{if_packet,virtio_net,filter}.h`; `net/bridge/br_input.c` (IFF_PROMISC).
"""

import errno
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

from insula.kernel import libc, packet
from insula.kernel.netlink import pack_address, pack_mac

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_MR_PROMISC = 1
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD
ND_NEIGHBOR_SOLICIT = 135

VNET_HEADER = 10
MAX_FRAME = VNET_HEADER + 14 + 65536
MIN_FRAME = VNET_HEADER + 14
LIMIT_BYTES = 8 << 20
LIMIT_FRAMES = 16384
_LENGTH = struct.Struct("!I")


class Replayed(NamedTuple):
    """What became of held frames."""

    delivered: int
    lost: int
    """Refused by the interface."""


class Hold:
    """The frames for one container that a bridge sees, from `start` to `stop`."""

    def __init__(
        self, bridge: str, *, mac: str, address: str, address6: str = "", limit_bytes: int = LIMIT_BYTES
    ) -> None:
        """bridge: its name.  mac, address, address6: of the container; the last may be empty.

        limit_bytes: of kernel memory; what exceeds it is lost.
        """
        self._bridge = bridge
        packed6 = pack_address(address6)[1] if address6 else b""
        self._filter = _filter(pack_mac(mac), pack_address(address)[1], packed6)
        self._callers_filter = _callers_filter(pack_mac(mac))
        self._limit = limit_bytes
        self._socket: socket.socket | None = None
        self.lost = 0
        """Frames that came when the limit was reached; known after `frames` or `stop`."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Hold everything from now on, after what is held already.  Raises: OSError (ENODEV, EPERM)."""
        self._start(self._filter)

    def start_with_callers(self) -> None:
        """Hold only who wants to make a TCP connection, until `start`.  Raises: as that."""
        self._start(self._callers_filter)

    def _start(self, program: bytes) -> None:
        if self._socket is not None:
            _attach(self._socket, program)
            return
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            made.setblocking(False)
            _attach(made, program)
            made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._limit)
            packet.bind(made, self._bridge, protocol=ETH_P_ALL)
            index = socket.if_nametoindex(self._bridge)
            wish = struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0)
            made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, wish)
        except OSError:
            made.close()
            raise
        self._socket = made

    def frames(self, *, limit: int = LIMIT_FRAMES) -> list[bytes]:
        """Take what has come so far, in order; each with its offload header.  Goes on holding."""
        found: list[bytes] = []
        if self._socket is None:
            return found
        while len(found) < limit:
            try:
                found.append(self._socket.recv(MAX_FRAME))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # the bridge has gone; what came before is ours
                    raise
                break
        self._count_lost()
        return found

    def stop(self) -> None:
        """Hold no more; what was not taken is dropped.  May be called again."""
        if self._socket is not None:
            self._count_lost()
            packet.close_later(self._socket)
            self._socket = None

    def fileno(self) -> int:
        """Readable when a frame has come.  Raises: ValueError if it does not hold."""
        if self._socket is None:
            raise ValueError("not holding")
        return self._socket.fileno()

    def _count_lost(self) -> None:
        if self._socket is not None:
            _, dropped = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self.lost += dropped


def replay(frames: Iterable[bytes], interface: str) -> Replayed:
    """Send frames out of an interface, in order: the host's end of a veth gives them to the container.

    Raises: OSError (ENODEV, ENETDOWN).  A frame that the interface refuses is lost, and counted.
    """
    delivered = lost = 0
    with packet.sender(interface) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        for frame in frames:
            try:
                sender.send(frame)
                delivered += 1
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE, errno.EINVAL):
                    raise
                lost += 1
    return Replayed(delivered, lost)


def pack(frames: Iterable[bytes]) -> bytes:
    """Make one message of frames."""
    return b"".join(_LENGTH.pack(len(each)) + each for each in frames)


def unpack(data: bytes, *, limit_frames: int = LIMIT_FRAMES, limit_bytes: int = LIMIT_BYTES) -> list[bytes]:
    """Take a peer's message of frames apart.  Raises: ValueError for what `pack` could not have made."""
    if len(data) > limit_bytes:
        raise ValueError(f"{len(data)} bytes of frames, more than {limit_bytes}")
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError("a frame without its length")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not MIN_FRAME <= length <= MAX_FRAME or at + length > len(data) or len(found) >= limit_frames:
            raise ValueError("a frame that cannot be one")
        found.append(data[at : at + length])
        at += length
    return found


def _filter(mac: bytes, address: bytes, address6: bytes) -> bytes:
    """Classic BPF: not from the container itself; to its hardware address, or a question for one of its addresses."""
    high, low = struct.unpack("!HI", mac)
    (wanted,) = struct.unpack("!I", address)
    load_word, load_half, equal, give = 0x20, 0x28, 0x15, 0x06
    solicited = _solicitation(address6)
    keep = 13 + len(solicited)
    program = (
        (load_word, 0, 0, 8),  # source, its last four bytes
        (equal, 0, 2, low),
        (load_half, 0, 0, 6),
        (equal, keep - 5, 0, high),  # its own: drop
        (load_word, 0, 0, 2),  # destination
        (equal, 0, 2, low),
        (load_half, 0, 0, 0),
        (equal, keep - 8, 0, high),
        (load_half, 0, 0, 12),  # type
        (equal, 0, 2, ETH_P_ARP),
        (load_word, 0, 0, 38),  # address that is asked for
        (equal, keep - 12, keep - 13, wanted),
        *solicited,
        (give, 0, 0, 0),
        (give, 0, 0, 0xFFFFFFFF),
    )
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def _callers_filter(mac: bytes) -> bytes:
    """Classic BPF: to a hardware address, and TCP with SYN and without ACK."""
    high, low = struct.unpack("!HI", mac)
    load_word, load_half, load_byte, load_after_header, header_length = 0x20, 0x28, 0x30, 0x50, 0xB1
    equal, jump, mask, give = 0x15, 0x05, 0x54, 0x06
    syn, syn_or_ack = 0x02, 0x12
    program = (
        (load_word, 0, 0, 2),  # destination, its last four bytes
        (equal, 0, 16, low),
        (load_half, 0, 0, 0),
        (equal, 0, 14, high),
        (load_half, 0, 0, 12),  # type
        (equal, 0, 5, ETH_P_IP),
        (load_byte, 0, 0, 23),
        (equal, 0, 10, socket.IPPROTO_TCP),
        (header_length, 0, 0, 14),
        (load_after_header, 0, 0, 27),  # flags of TCP
        (jump, 0, 0, 4),
        (equal, 0, 6, ETH_P_IPV6),
        (load_byte, 0, 0, 20),
        (equal, 0, 4, socket.IPPROTO_TCP),
        (load_byte, 0, 0, 67),
        (mask, 0, 0, syn_or_ack),
        (equal, 0, 1, syn),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def _solicitation(address6: bytes) -> tuple[tuple[int, int, int, int], ...]:
    """Classic BPF that goes on to its end to drop, or one further to keep: a neighbour solicitation for an address."""
    if not address6:
        return ()
    load_word, load_byte, equal = 0x20, 0x30, 0x15
    steps = [(load_byte, 20, socket.IPPROTO_ICMPV6), (load_byte, 54, ND_NEIGHBOR_SOLICIT)]
    steps += [(load_word, 62 + 4 * at, word) for at, word in enumerate(struct.unpack("!4I", address6))]
    length = 1 + 2 * len(steps)
    program = [(equal, 0, length - 1, ETH_P_IPV6)]
    for load, offset, value in steps:
        program.append((load, 0, 0, offset))
        program.append((equal, 0, length - len(program) - 1, value))
    program[-1] = (equal, 1, 0, steps[-1][2])
    return tuple(program)


def _attach(packet_socket: socket.socket, program: bytes) -> None:
    kept = bytearray(program)
    description = struct.pack("HxxxxxxQ", len(program) // 8, libc.address_of(kept))
    packet_socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, description)

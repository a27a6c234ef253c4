# SPDX-License-Identifier: Apache-2.0
"""Netlink messages as bytes: attributes packed and parsed, a socket that asks and reads the answers.

Out of scope: what the messages mean (`netlink`).  Standard library only and light: the first process of a container
configures its own interface with this.

Sources: netlink(7), rtnetlink(7); `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h`.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400

NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

#: The kernel never makes one datagram of a dump larger than 32 KiB (NLMSG_GOODSIZE and its growth).
_RECEIVE_BYTES = 65536

#: How often a dump that changed under our hands is asked for again before what was seen is taken.
_DUMP_TRIES = 5


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack an attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def number(kind: int, value: int) -> bytes:
    """Pack an attribute that is a 32-bit number."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """Pack an attribute that is a string ending in a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *children: bytes) -> bytes:
    """Pack an attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(children))


def parse_attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the payloads by kind; of a kind that comes twice, the last.  Stops at the first broken one."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def string_of(payload: bytes | None) -> str:
    """Return a string attribute's text; nothing gives the empty string."""
    return (payload or b"").rstrip(b"\0").decode(errors="replace")


def number_of(payload: bytes | None) -> int:
    """Return a 32-bit attribute's value; nothing gives 0."""
    value: int = struct.unpack_from("=I", payload)[0] if payload and len(payload) >= 4 else 0
    return value


class Socket:
    """A netlink socket that is asked one question at a time.  It stays in the namespace in which it was opened."""

    def __init__(self, family: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        try:
            for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, *, flags: int, body: bytes, what: str) -> list[bytes]:
        """Send a request and return the bodies of its answers.

        what: the words for an error, such as "RTM_NEWLINK `name`".
        Raises: OSError with the kernel's own explanation where it gave one.
        """
        if flags & NLM_F_DUMP == NLM_F_DUMP and not flags & NLM_F_CREATE:
            return self._dump(kind, flags=flags, body=body, what=what)
        self._send(kind, flags=flags | NLM_F_ACK, body=body)
        found: list[bytes] = []
        while True:
            for answer, answer_flags, payload in self._receive():
                if answer == NLMSG_ERROR:
                    _raise_refusal(payload, flags=answer_flags, what=what)
                    return found
                found.append(payload)

    def _dump(self, kind: int, *, flags: int, body: bytes, what: str) -> list[bytes]:
        found: list[bytes] = []
        for _ in range(_DUMP_TRIES):
            self._send(kind, flags=flags, body=body)
            found, is_torn = self._collect(what)
            if not is_torn:
                break
        return found

    def _collect(self, what: str) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        is_torn = False
        while True:
            for answer, answer_flags, payload in self._receive():
                is_torn |= bool(answer_flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_refusal(payload, flags=answer_flags, what=what)
                    return found, is_torn
                found.append(payload)

    def _send(self, kind: int, *, flags: int, body: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        header = _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < 16:
                break
            if sequence == self._sequence:
                yield kind, flags, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _raise_refusal(payload: bytes, *, flags: int, what: str) -> None:
    # struct nlmsgerr: the negative errno, the header of the request (its body too, unless capped), then attributes.
    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else errno.EPROTO
    if not code:
        return
    words = ""
    if flags & NLM_F_ACK_TLVS and len(payload) >= 20:
        echoed = 16 if flags & NLM_F_CAPPED else struct.unpack_from("=I", payload, 4)[0]
        words = string_of(parse_attributes(payload, 4 + ((echoed + 3) & ~3)).get(NLMSGERR_ATTR_MSG))
    reason = os.strerror(code) + (f" ({words.rstrip('.')})" if words else "")
    raise OSError(code, f"{what}: {reason}")

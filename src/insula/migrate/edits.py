# SPDX-License-Identifier: Apache-2.0
"""The records that carry a round's changes of a folder, and their order.

    Move    an object to its number, out of the way, so that names can be exchanged
    Remove  the deepest first
    Make    a folder, or an object: from its number, as a link to another name, or new
    Open    a file whose content follows: Write {offset} and bytes, Hole {offset, size}, Attributes
    …       Attributes of folders, the deepest first: nothing is made in them any more

A record is `>I`, its length, and msgpack; the bytes of a `Write` follow it.  Pure.
"""

import struct
from collections.abc import Iterator

import msgspec

LENGTH = struct.Struct(">I")
MAX_RECORD = 1 << 20


class Attributes(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...] = ()


class Move(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    name: bytes
    number: int


class Remove(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    name: bytes


class Make(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """kind: S_IFMT of the mode.  number: of a Move, 0 for none.  target: what a symbolic link says."""

    name: bytes
    kind: int
    number: int = 0
    target: bytes = b""


class Link(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    name: bytes
    to: bytes


class Open(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    name: bytes
    size: int


class Write(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    offset: int
    size: int


class Hole(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    offset: int
    size: int


Record = Attributes | Move | Remove | Make | Link | Open | Write | Hole

_decoder = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()


def encode(record: Record) -> bytes:
    data = _encoder.encode(record)
    return LENGTH.pack(len(data)) + data


def decode(data: bytes) -> Record:
    """Raises: msgspec.DecodeError."""
    found: Record = _decoder.decode(data)
    return found


def parents(name: bytes) -> Iterator[bytes]:
    """Yield the folders above a name, the root as the empty name."""
    while name:
        name = name.rpartition(b"/")[0]
        yield name

# SPDX-License-Identifier: Apache-2.0
"""CRIU's image of which pages a process has: `pagemap-PID.img`, PID as in the container.

    magic, magic, { u32 size, pagemap_head }, { u32 size, pagemap_entry }…

Out of scope: the pages themselves, and every other image.  Fast enough to be read while a program stands still: entries
differ in their address only, so what follows the address is decoded once per kind.  Standard library only.
Source: CRIU's `images/pagemap.proto`, `criu/include/magic.h`, `criu/pagemap.c`.
"""

import os
import re
import struct
from typing import NamedTuple

from insula.kernel import protobuf

PAGE_BYTES = 4096
PE_PARENT, PE_LAZY, PE_PRESENT = 1, 2, 4
"""Flags of an entry: the pages are in the parent folder; may be brought later; are in pages-N.img."""

_COMMON_MAGIC, _PAGEMAP_MAGIC = 0x54564319, 0x56084025
_MAGICS = struct.Struct("<II")
_SIZE = struct.Struct("<I")
_PAGEMAP_NAME = re.compile(r"pagemap-([1-9][0-9]*)\.img")
_VADDR_KEY = 1 << 3
_LAST = 1 << 7
_MARKS, _MARKS_OF_SEVEN = 0x80808080808080, 0x808080808080
_SHORTEST = 8
"""Bytes of an entry: its address is never in the lowest 16 KiB."""


class Entry(NamedTuple):
    """Pages side by side that are treated alike."""

    vaddr: int
    pages: int
    flags: int


def pid_of(name: str) -> int | None:
    """Return whose pagemap an image is, by its pid in the container; None if it is none (or shared memory's)."""
    match = _PAGEMAP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def shared_pagemap_name(number: int) -> str:
    """Return the name of the pagemap of shared memory, by CRIU's number of it: its inode, or its System V id."""
    return f"pagemap-shmem-{number}.img"


def pages_name(number: int) -> str:
    """Return the name of the image of pages of that number."""
    return f"pages-{number}.img"


def read_image(folder: int, name: str) -> bytes:
    """Read an image of the folder behind a descriptor.  Raises: OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def pages_id_of(data: bytes) -> int:
    """Return which image of pages belongs to a pagemap.  Raises: ValueError if it does not say."""
    start = _MAGICS.size + _SIZE.size
    for number, value in protobuf.decode(data[start : start + _size_at(data, _MAGICS.size)]):
        if number == 1 and isinstance(value, int):
            return value
    raise ValueError("pagemap: it names no pages")


def decode_pagemap(data: bytes) -> list[Entry]:
    """Return the entries of a pagemap.  Raises: ValueError if it is none, or cut short."""
    if len(data) < _MAGICS.size or _MAGICS.unpack_from(data) != (_COMMON_MAGIC, _PAGEMAP_MAGIC):
        raise ValueError("pagemap: not such an image")
    position = _MAGICS.size
    position += _SIZE.size + _size_at(data, position)  # the head
    entries: list[Entry] = []
    tails: dict[bytes, tuple[int, int]] = {}
    length, unpack, number_of = len(data), _SIZE.unpack_from, int.from_bytes
    while position < length:
        if position + _SIZE.size > length:
            raise ValueError("pagemap: cut short")
        end = position + 4 + unpack(data, position)[0]
        entry = data[position + 4 : end]
        if end > length or len(entry) < _SHORTEST or entry[0] != _VADDR_KEY:
            raise ValueError("pagemap: an entry is cut short")
        bits = number_of(entry[1:8], "little")
        if bits & _MARKS == _MARKS_OF_SEVEN:  # seven bytes of address, as above 4 TiB
            low = bits & 0x7F | bits >> 1 & 0x3F80 | bits >> 2 & 0x1FC000 | bits >> 3 & 0xFE00000
            vaddr = low | bits >> 4 & 0x7F0000000 | bits >> 5 & 0x3F800000000 | bits >> 6 & 0x1FC0000000000
            tail = entry[8:]
        else:
            vaddr, tail = _address(entry)
        kind = tails.get(tail)
        if kind is None:
            kind = tails[tail] = _decode_tail(tail)
        entries.append(Entry(vaddr, *kind))
        position = end
    return entries


def _address(entry: bytes) -> tuple[int, bytes]:
    for place in range(1, len(entry)):
        if entry[place] < _LAST:
            _number, vaddr = next(protobuf.decode(entry[: place + 1]))
            if isinstance(vaddr, int):
                return vaddr, entry[place + 1 :]
    raise ValueError("pagemap: an address is cut short")


def _size_at(data: bytes, position: int) -> int:
    try:
        size: int = _SIZE.unpack_from(data, position)[0]
    except struct.error:
        raise ValueError("pagemap: cut short") from None
    if not 0 < size <= len(data) - position - _SIZE.size:
        raise ValueError("pagemap: an entry is cut short")
    return size


def _decode_tail(tail: bytes) -> tuple[int, int]:
    fields = {number: value for number, value in protobuf.decode(tail) if isinstance(value, int)}
    if 1 in fields or not (2 in fields or 5 in fields):
        raise ValueError("pagemap: an entry of an unknown form")
    in_parent = PE_PARENT if fields.get(3) else 0
    flags = fields.get(4, 0 if in_parent else PE_PRESENT) | in_parent
    return fields.get(5, fields.get(2, 0)), flags


def encode_pagemap(entries: list[Entry], *, pages_id: int) -> bytes:
    """Return a pagemap with these entries, whose pages are in `pages-ID.img`."""
    out = [_MAGICS.pack(_COMMON_MAGIC, _PAGEMAP_MAGIC), _sized(protobuf.encode([(1, pages_id)]))]
    for vaddr, pages, flags in entries:
        out.append(_sized(protobuf.encode([(1, vaddr), (2, pages & 0xFFFFFFFF), (4, flags), (5, pages)])))
    return b"".join(out)


def _sized(data: bytes) -> bytes:
    return _SIZE.pack(len(data)) + data

# SPDX-License-Identifier: Apache-2.0
"""CRIU's images read by who distrusts them: entries of protocol buffers behind a magic, in which nothing stands twice.

Out of scope: what the fields mean (`compare.py`, `compare_place.py`).
Sources: CRIU's `criu/protobuf.c`, `criu/include/magic.h`.
"""

import struct
from collections.abc import Mapping, Sequence

from insula.kernel import protobuf
from insula.kernel.criu_images import read_image

COMMON_MAGIC = 0x54564319
INVENTORY_MAGIC = 0x58313116
"""Of the one image that has no common magic before its own."""
_WORD = struct.Struct("<I")

Fields = Mapping[int, Sequence[int | bytes]]


def entries_of(images: int, name: str, *, magic: int) -> list[bytes]:
    """Return the entries of an image in the folder behind a descriptor.  Raises: ValueError if it is none; OSError."""
    try:
        data = read_image(images, name)
    except FileNotFoundError as error:
        raise ValueError(f"image `{name}` is missing") from error
    head = _WORD.pack(magic) if magic == INVENTORY_MAGIC else _WORD.pack(COMMON_MAGIC) + _WORD.pack(magic)
    if not data.startswith(head):
        raise ValueError("its image is none")
    found, position = [], len(head)
    while position < len(data):
        size = _WORD.unpack_from(data, position)[0] if position + _WORD.size <= len(data) else len(data)
        position += _WORD.size + size
        if position > len(data):
            raise ValueError("its image is cut short, or longer")
        found.append(data[position - size : position])
    return found


def entry_of(images: int, name: str, *, magic: int) -> Fields:
    """Return the one entry of an image.  Raises: ValueError if it has not one; OSError."""
    match entries_of(images, name, magic=magic):
        case [data]:
            return fields_of(data)
    raise ValueError("its image is cut short, or longer")


def fields_of(data: bytes) -> Fields:
    """Return the values of each field, in their order.  Raises: ValueError."""
    found: dict[int, list[int | bytes]] = {}
    for number, value in protobuf.decode(data):
        found.setdefault(number, []).append(value)
    return found


def message(fields: Fields, number: int) -> bytes:
    """Return a message, a text or bytes.  Raises: ValueError if there is not one."""
    # CRIU's decoder joins a message that stands there twice; so nothing may stand there twice.
    match fields.get(number, ()):
        case [bytes() as data]:
            return data
    raise ValueError("its image is none")


def number(fields: Fields, field: int, *, default: int = 0) -> int:
    """Return a number.  Raises: ValueError if there are several, or it is none."""
    match fields.get(field, ()):
        case []:
            return default
        case [int() as value]:
            return value
    raise ValueError("its image is none")

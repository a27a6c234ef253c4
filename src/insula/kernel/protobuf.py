# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as CRIU's messages need it: no schema, no generated code.

Out of scope: groups, packed fields, floating point.  A field is (number, value); bytes are length-delimited, ints are
varints.  Source: protobuf.dev, "Encoding".
"""

from collections.abc import Iterable, Iterator

VARINT = 0
LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}

Value = int | bytes | str | bool


def encode(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Encode fields in the given order."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3 | VARINT) + _varint(value & (1 << 64) - 1)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields in their order.  Raises: ValueError for bytes that are cut short or of an unknown kind."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if kind == LENGTH_DELIMITED:
            length, position = _read_varint(data, position)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"protobuf: field {number} has the unknown kind {kind}")
        if position + length > len(data):
            raise ValueError(f"protobuf: field {number} is cut short")
        yield number, data[position : position + length]
        position += length


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("protobuf: a number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7

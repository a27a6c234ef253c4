# SPDX-License-Identifier: Apache-2.0
"""Guard regions are added to CRIU's image of the mappings as CRIU adds them itself."""

import struct

import pytest

from insula.kernel import criu_unseen, protobuf

GUARD = 1 << 16


def _image(*entries: bytes, tail: bytes = b"") -> bytes:
    body = protobuf.encode([(1, 4096), *((14, each) for each in entries), (15, 1)]) + tail
    return struct.pack("<III", 0x54564319, 0x57492820, len(body)) + body


def _entry(start: int, end: int, status: int) -> bytes:
    return protobuf.encode(enumerate((start, end, 0, 0, 3, 0x22, status, 1), 1))


def _entries(data: bytes) -> list[dict[int, int | bytes]]:
    fields = protobuf.decode(data[12:])
    return [
        dict(protobuf.decode(value)) for number, value in fields if number == 14 and isinstance(value, bytes)
    ]


def test_guards_come_last() -> None:
    data = criu_unseen.add_guards(_image(_entry(0x10000, 0x20000, 1)), [(0x11000, 1), (0x13000, 2)])
    assert struct.unpack_from("<I", data, 8)[0] == len(data) - 12
    found = [(each[1], each[2], each[7]) for each in _entries(data)]
    assert found == [(0x10000, 0x20000, 1), (0x11000, 0x12000, GUARD), (0x13000, 0x15000, GUARD)]
    assert _entries(data)[1][8] == 1, "fd is -1, as a zigzag number"


def test_reserves_come_where_their_addresses_want_them() -> None:
    before = _image(_entry(0x10000, 0x20000, 1), _entry(0x90000, 0xA0000, 1), _entry(0x11000, 0x12000, GUARD))
    data = criu_unseen.add_reserves(before, [(0x40000, 0x80000, 1 << 16), (0x20000, 0x30000, 0)])
    assert struct.unpack_from("<I", data, 8)[0] == len(data) - 12
    found = [(each[1], each[7]) for each in _entries(data)]
    assert found == [(0x10000, 1), (0x20000, 0x201), (0x40000, 0x201), (0x90000, 1), (0x11000, GUARD)]
    assert [_entries(data)[2][number] for number in (2, 5, 6, 8, 9)] == [0x80000, 0, 0x4022, 1, 1 << 16]


def test_what_criu_has_listed_itself_is_left() -> None:
    data = _image(_entry(0x10000, 0x20000, 1), _entry(0x11000, 0x12000, GUARD))
    assert criu_unseen.add_guards(data, [(0x11000, 1)]) == data


@pytest.mark.parametrize("data", [b"", b"x" * 40, _image()[:-5]])
def test_no_such_image(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"mm|cut short"):
        criu_unseen.add_guards(data, [(0x11000, 1)])

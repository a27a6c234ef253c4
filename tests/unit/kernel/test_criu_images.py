# SPDX-License-Identifier: Apache-2.0
"""CRIU's pagemaps: what is encoded comes back, what is cut short is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import criu_images, protobuf
from insula.kernel.criu_images import PE_LAZY, PE_PARENT, PE_PRESENT, Entry

ENTRIES = st.lists(
    st.builds(
        Entry,
        st.integers(16, (1 << 52) - 1).map(lambda page: page * 4096),
        st.integers(1, (1 << 40)),
        st.integers(1, 7),
    ),
    max_size=20,
)


@given(ENTRIES)
def test_round_trip(entries: list[Entry]) -> None:
    assert criu_images.decode_pagemap(criu_images.encode_pagemap(entries, pages_id=4711)) == entries


@given(ENTRIES, st.integers(0, 400))
def test_cut_short_is_refused_or_shorter(entries: list[Entry], length: int) -> None:
    data = criu_images.encode_pagemap(entries, pages_id=1)
    try:
        found = criu_images.decode_pagemap(data[:length])
    except ValueError as error:
        assert str(error).startswith(("pagemap", "protobuf"))
    else:
        assert found == entries[: len(found)]


@given(st.binary(max_size=120))
def test_noise_is_decoded_or_refused(data: bytes) -> None:
    head = struct.pack("<II", 0x54564319, 0x56084025)
    for each in (data, head + data):
        try:
            criu_images.decode_pagemap(each)
        except ValueError as error:
            assert str(error).startswith(("pagemap", "protobuf"))


def test_entries_of_older_versions() -> None:
    head = criu_images.encode_pagemap([], pages_id=1)
    old = [
        protobuf.encode([(1, 0x7F0000001000), (2, 3)]),
        protobuf.encode([(1, 0x7F0000005000), (2, 1), (3, 1)]),
        protobuf.encode([(1, 0x7F0000009000), (2, 1), (3, 0), (4, PE_LAZY | PE_PRESENT)]),
    ]
    data = head + b"".join(struct.pack("<I", len(each)) + each for each in old)
    assert [each.flags for each in criu_images.decode_pagemap(data)] == [
        PE_PRESENT,
        PE_PARENT,
        PE_LAZY | PE_PRESENT,
    ]


@pytest.mark.parametrize(
    ("name", "pid"), [("pagemap-1.img", 1), ("pagemap-shmem-9.img", None), ("pages-1.img", None)]
)
def test_whose_it_is(name: str, pid: int | None) -> None:
    assert criu_images.pid_of(name) == pid

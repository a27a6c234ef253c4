# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers: what is encoded comes back, what is cut short is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import protobuf

FIELDS = st.lists(
    st.tuples(st.integers(1, 2000), st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=200))),
    max_size=10,
)


@given(FIELDS)
def test_round_trip(fields: list[tuple[int, int | bytes]]) -> None:
    assert list(protobuf.decode(protobuf.encode(fields))) == fields


@given(st.binary(max_size=60))
def test_noise_is_decoded_or_refused(data: bytes) -> None:
    try:
        list(protobuf.decode(data))
    except ValueError as error:
        assert "protobuf" in str(error)


def test_known_bytes() -> None:
    # From protobuf.dev, "Encoding": field 1 = 150; field 2 = "testing".
    assert protobuf.encode([(1, 150)]) == bytes.fromhex("089601")
    assert protobuf.encode([(2, "testing")]) == bytes.fromhex("120774657374696e67")
    assert protobuf.encode([(1, -1)]) == bytes.fromhex("08ffffffffffffffffff01")


def test_cut_short() -> None:
    with pytest.raises(ValueError, match="cut short"):
        list(protobuf.decode(b"\x12\x07test"))

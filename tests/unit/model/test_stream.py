# SPDX-License-Identifier: Apache-2.0
"""Frames survive any cutting of the byte stream, and a length without limit is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model import stream


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8),
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(stream.frame(kind, payload) for kind, payload in frames)
    reader, found, position = stream.FrameReader(), [], 0
    while position < len(data):
        for cut in cuts:
            found += reader.feed(data[position : position + cut])
            position += cut
    assert found == frames


def test_a_frame_above_the_limit_is_refused() -> None:
    reader = stream.FrameReader()
    with pytest.raises(ValueError, match="limit"):
        list(reader.feed(stream.HEADER.pack(stream.STDOUT, stream.MAX_PAYLOAD + 1)))

# SPDX-License-Identifier: Apache-2.0
"""CRIU's page stream is followed however it is cut."""

from hypothesis import given
from hypothesis import strategies as st

from insula.migrate import pages


def _command(name: int, *, flags: int = 0, count: int = 0) -> bytes:
    return pages.IOV.pack(name | flags << 16, count, 0x1000, 7)


@given(
    st.lists(st.integers(0, 3), max_size=5),
    st.lists(st.integers(1, 9000), min_size=1, max_size=10),
)
def test_pages_opens_and_the_end_are_counted(counts: list[int], cuts: list[int]) -> None:
    data = b"".join(
        _command(pages.OPEN2)
        + _command(pages.ADD_FLAGS, flags=pages.PRESENT, count=count)
        + b"\x23\x10" * (count * pages.PAGE_BYTES // 2)  # looks like CLOSE, but lies within pages
        + _command(pages.ADD_FLAGS, flags=1, count=99)  # not present: no pages follow
        for count in counts
    )
    stream, opened, position = pages.PageStream(), 0, 0
    while position < len(data):
        for cut in cuts:
            opened += stream.feed(data[position : position + cut])
            position += cut
    assert opened == len(counts)
    assert stream.page_bytes == sum(counts) * pages.PAGE_BYTES
    assert not stream.is_closed
    stream.feed(_command(pages.CLOSE))
    assert stream.is_closed

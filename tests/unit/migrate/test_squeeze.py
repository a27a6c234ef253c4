# SPDX-License-Identifier: Apache-2.0
"""Compression on the wire: only where it pays, whole on the other side, and no bomb."""

import os
import socket
import threading
from collections.abc import Iterable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from insula.image.zstd import Packer, Unpacker
from insula.migrate.squeeze import WINDOW_SECONDS, Link, Squeezer, pays, plain_rate
from insula.migrate.wire import HEADER, MAX_PAYLOAD, Wire
from insula.model.errors import ProtocolError
from insula.model.migration import Kind

WORDS = b"".join(b"row %d of a table that compresses well; " % number for number in range(30_000))[: 1 << 20]
RANDOM = os.urandom(1 << 20)


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def link_of(rate: float, *, seconds: float = 10 * WINDOW_SECONDS) -> Link:
    """Return a link that took so many bytes per second while data waited for it."""
    clock = Clock()
    link = Link(clock)
    for _ in range(10):
        clock.now += seconds / 10
        link.sent(int(rate * seconds / 10), seconds=seconds / 10)
    return link


@pytest.mark.parametrize(("rate", "expected"), [(1e6, True), (50e6, True), (5e9, False)])
def test_it_pays_on_a_link_that_is_slower_than_the_compressor(rate: float, expected: bool) -> None:
    assert (Squeezer(link_of(rate)).pack(WORDS) is not None) is expected


def test_what_cannot_be_compressed_and_what_is_small_is_left_alone() -> None:
    squeezer = Squeezer(link_of(1e6))
    assert squeezer.pack(RANDOM) is None
    assert squeezer.pack(WORDS[:4095]) is None
    assert squeezer.pack(WORDS[:4096]) is not None


def test_a_forecast_knows_what_compression_will_do() -> None:
    assert plain_rate(1e6, [WORDS[:65536]] * 4) > 2e6
    assert plain_rate(1e6, [RANDOM[:65536]] * 4) == 1e6
    assert plain_rate(1e11, [WORDS[:65536]] * 4) == 1e11
    assert plain_rate(1e6, []) == 1e6


def test_nothing_is_compressed_before_the_link_is_known() -> None:
    assert Squeezer(Link()).pack(WORDS) is None


def test_a_link_is_measured_by_what_waits_for_it() -> None:
    assert link_of(20e6).rate == pytest.approx(20e6, rel=0.01)
    clock = Clock()
    fast = Link(clock)
    for _ in range(100):  # it takes at once what is made slowly
        clock.now += 0.01
        fast.sent(1 << 20, seconds=0.0001)
    assert fast.rate > 1e9


def test_a_link_that_becomes_slow_is_noticed() -> None:
    clock = Clock()
    link = Link(clock)
    for rate in (1e9, 10e6):
        for _ in range(40):
            clock.now += 0.1
            link.sent(int(rate / 10), seconds=0.1)
    assert link.rate < 20e6


@given(st.floats(1e3, 1e11), st.floats(1e6, 1e10), st.floats(0.0, 1.5))
def test_what_pays_is_faster(link: float, compressor: float, ratio: float) -> None:
    if pays(link=link, compressor=compressor, ratio=ratio):
        assert 1 / compressor + ratio / link < 1 / link


class SlowLink(Link):
    """One of 1 MB/s, whatever is seen."""

    @property
    def rate(self) -> float:
        return 1e6


def sent_and_received(chunks: Iterable[bytes]) -> tuple[Wire, bytes]:
    near, far = socket.socketpair()
    sender, receiver = Wire(near), Wire(far)
    sender._link = SlowLink()  # noqa: SLF001
    sender.compress()
    thread = threading.Thread(target=sender.send_stream, args=(chunks,))
    thread.start()
    received = b"".join(receiver.receive_stream())
    thread.join()
    sender.close()
    receiver.close()
    return sender, received


CHUNKS = {
    "words": WORDS,
    "random": RANDOM,
    "zeros": b"\0" * (600 << 10),
    "nothing": b"",
    "little": b"abc",
    "more than a piece": WORDS * 3,
}


@given(st.lists(st.sampled_from(sorted(CHUNKS)), max_size=4))
def test_everything_arrives_as_it_was(names: list[str]) -> None:
    chunks = [CHUNKS[name] for name in names]
    sender, received = sent_and_received(chunks)
    assert received == b"".join(chunks)
    assert sender.sent_bytes <= sender.raw_bytes


def test_raw_bytes_say_what_it_was_and_sent_bytes_what_travelled() -> None:
    sender, _ = sent_and_received([WORDS] * 4)
    assert sender.raw_bytes >= 4 * len(WORDS)
    assert sender.sent_bytes < sender.raw_bytes / 4


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))


@pytest.mark.parametrize(
    "frame",
    [
        BOMB,
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 22)),
        Packer().pack(WORDS)[:-5],
        Packer().pack(b"x" * 100) + b"more",
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
        b"",
        b"no frame",
    ],
    ids=["bomb", "without a size", "cut", "followed", "claims 16 EiB", "empty", "noise"],
)
def test_a_frame_that_is_none_or_becomes_too_much_is_refused(frame: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(HEADER.pack(Kind.PACKED, len(frame)) + frame)
        with pytest.raises(ProtocolError, match="cannot unpack a piece"):
            list(Wire(near).receive_stream())


@given(st.binary(max_size=300), st.integers(0, 300))
def test_whatever_a_frame_says_it_becomes_no_more_than_allowed(noise: bytes, cut: int) -> None:
    frame = Packer().pack(WORDS[:1000])
    try:
        found = Unpacker().unpack(frame[:cut] + noise, limit_bytes=MAX_PAYLOAD)
    except ValueError:
        return
    assert len(found) <= MAX_PAYLOAD

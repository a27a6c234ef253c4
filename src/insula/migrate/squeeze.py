# SPDX-License-Identifier: Apache-2.0
"""Whether a piece of a stream is worth compressing: decided by measuring the link, the compressor and the data.

    plain     1 ÷ link                          seconds per byte
    packed    1 ÷ compressor + ratio ÷ link     it must be less than GAIN × plain

The link is measured where data waits for it: a link that takes everything at once is faster than any compressor.  A sample
out of the middle of each piece tells the ratio, so that what cannot be compressed costs a few microseconds.  What the
processor spends while the kernel's buffer drains is free, and counted all the same.

Out of scope: the frames (`wire.py`), zstd (`image/zstd.py`).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from insula.image.zstd import Packer

LEAST_BYTES = 4096
"""Smaller pieces are sent as they are."""
SAMPLE_BYTES = 16 << 10
GAIN = 0.7
"""It must take less than that part of the time: processors have better things to do, and the other side unpacks, too."""
WINDOW_SECONDS = 0.25
"""For how long the link is watched before what was seen earlier counts only half."""
WAITING = 0.2
"""The link holds us up if we wait for it for that part of the time."""
FIRST_RATE = 200e6
"""Of the compressor in bytes per second, until it is measured."""


@dataclass(slots=True)
class Link:
    """What a link takes, in bytes per second, from how long sending takes."""

    clock: Callable[[], float] = time.monotonic
    _bytes: float = 0.0
    _waited: float = 0.0
    _passed: float = 0.0
    _last: float = 0.0

    def sent(self, count: int, *, seconds: float) -> None:
        """Note a call that sent bytes.  seconds: what the call took."""
        now = self.clock()
        if self._passed > WINDOW_SECONDS:
            self._bytes, self._waited, self._passed = self._bytes / 2, self._waited / 2, self._passed / 2
        self._bytes += count
        self._waited += seconds
        # Time in which nothing was to be sent says nothing of the link.
        self._passed += min(now - self._last, WINDOW_SECONDS) if self._last else seconds
        self._last = now

    @property
    def rate(self) -> float:
        """Infinite as long as nothing is known."""
        is_held_up = self._waited > WAITING * self._passed
        seconds = self._passed if is_held_up else self._waited
        return self._bytes / seconds if seconds > 0 else float("inf")


class Squeezer:
    """Packs the pieces for which it pays."""

    def __init__(self, link: Link, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        self._packer = Packer()
        self._rate = FIRST_RATE

    def pack(self, piece: bytes | bytearray | memoryview) -> bytes | None:
        """Return the piece packed; None if it is better sent as it is."""
        size = len(piece)
        link = self._link.rate
        if size < LEAST_BYTES or not pays(link=link, compressor=self._rate, ratio=0.0):
            return None
        middle = size // 2
        sample = memoryview(piece)[max(0, middle - SAMPLE_BYTES // 2) : middle + SAMPLE_BYTES // 2]
        ratio = len(self._packer.pack(sample)) / len(sample)
        if not pays(link=link, compressor=self._rate, ratio=ratio):
            return None
        began = self._clock()
        packed = self._packer.pack(piece)
        self._rate = (self._rate + size / max(self._clock() - began, 1e-6)) / 2
        return packed if pays(link=link, compressor=self._rate, ratio=len(packed) / size) else None


def plain_rate(link: float, samples: Iterable[bytes]) -> float:
    """Return how many bytes per second of such data a link will take, compressed where that pays.

    link: bytes per second of what cannot be compressed.
    """
    packer, plain, packed, began = Packer(), 0, 0, time.monotonic()
    for each in samples:
        plain += len(each)
        packed += len(packer.pack(each))
    if not plain:
        return link
    compressor, ratio = plain / max(time.monotonic() - began, 1e-6), packed / plain
    if not pays(link=link, compressor=compressor, ratio=ratio):
        return link
    return 1 / (1 / compressor + ratio / link)


def pays(*, link: float, compressor: float, ratio: float) -> bool:
    """Tell whether packing makes it faster.  Rates in bytes per second; ratio: packed ÷ plain.  Pure."""
    return 1 / compressor + ratio / link < GAIN / link

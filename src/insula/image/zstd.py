# SPDX-License-Identifier: Apache-2.0
"""zstd, the only door to it: pieces that travel between hosts, whole streams of archives.

Whoever reads what others have packed says how much it may become: a frame says its own size, and a kilobyte may claim terabytes.
The library is loaded by the first use.  Source: RFC 8878; python-zstandard's API.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, cast

from insula.image.tarheader import ByteSource

if TYPE_CHECKING:
    import io

#: The largest window of `zstd --ultra --long=27`; more would let a small file claim gigabytes of memory.
WINDOW_BYTES = 1 << 27
LEVEL = 1
"""The fastest of the ordinary ones: about 400 MB/s of a program's memory per processor (level 3: 180 MB/s, a tenth smaller)."""


class Packer:
    """Packs pieces, each for itself.  For one thread at a time."""

    def __init__(self) -> None:
        import zstandard

        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)

    def pack(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the data as one frame."""
        return self._compressor.compress(data)


class Unpacker:
    """Unpacks what `Packer` has packed.  For one thread at a time."""

    def __init__(self) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()

    def unpack(self, frame: bytes | bytearray | memoryview, *, limit_bytes: int) -> bytes:
        """Return the data of one frame.

        Raises: ValueError for what is no frame, is followed by something, or becomes more than the limit; nothing of such
        a size is allocated.
        """
        import zstandard

        try:
            size = zstandard.frame_content_size(frame)
            if not 0 <= size <= limit_bytes:
                raise ValueError(
                    f"it becomes {size} bytes, more than {limit_bytes}" if size > 0 else "no size"
                )
            return self._decompressor.decompress(frame, max_output_size=limit_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


def errors() -> tuple[type[Exception], ...]:
    """Return what `stream` raises for damaged archives."""
    import zstandard

    return (zstandard.ZstdError,)


def stream(source: io.RawIOBase) -> ByteSource:
    """Return the plain bytes of an archive."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    return cast(
        ByteSource,
        decompressor.stream_reader(cast("IO[bytes]", source), read_size=1 << 20, read_across_frames=True),
    )

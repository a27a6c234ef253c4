# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a file differ from what the other side has.  Holes are never read.

Of files above `WHOLE_BYTES` a digest per block is kept; smaller ones travel whole.

The digest is GMAC under a key that nobody but this process has, for the last round happens while the program stands: on
128 MB it takes 60 ms, SHA-1 100, BLAKE2b 200.  Two contents have the same with a chance of 2⁻¹²⁰, whoever chose them, as long
as nobody sees a digest, which is why it may always be under the same nonce.
Sources: lseek(2), SEEK_DATA; NIST SP 800-38D.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from insula.migrate.edits import Hole, Write, encode

BLOCK = 4096
PIECE = 512 << 10
WHOLE_BYTES = 32 << 10
DIGEST_BYTES = 16
_KEYED = AESGCM(os.urandom(32))
_NONCE = bytes(12)
_NOTHING = bytes(DIGEST_BYTES)
"""In place of a digest: a hole."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the other side has of a file."""

    size: int
    digests: bytes
    """Empty: not kept."""


def changes(descriptor: int, *, size: int, known: Known | None) -> Iterator[bytes | Known]:
    """Yield the records (and bytes) that bring the other side's file up to date; at the end what it has then."""
    old = known.digests if known else b""
    is_kept = size > WHOLE_BYTES
    digests = bytearray()
    if known and not (old and is_kept):
        yield encode(Hole(0, max(size, known.size)))
    for start, end, is_data in _segments(descriptor, size):
        if is_data:
            yield from _data(descriptor, start, end, old=old, digests=digests if is_kept else None)
            continue
        if is_kept:
            first = len(digests)
            digests += bytes(-(-(end - start) // BLOCK) * DIGEST_BYTES)
            if old[first : len(digests)].strip(b"\0"):
                yield encode(Hole(start, end - start))
        # not kept: the file was emptied above, or is new
    yield Known(size, bytes(digests))


def _data(descriptor: int, start: int, end: int, *, old: bytes, digests: bytearray | None) -> Iterator[bytes]:
    position = start
    while position < end:
        piece = os.pread(descriptor, min(PIECE, end - position), position)
        if not piece:  # it was cut meanwhile: the next round tells
            piece = bytes(min(PIECE, end - position))
        # A file that grows meanwhile must not shift the blocks.
        if len(piece) % BLOCK and position + len(piece) < end:
            piece += bytes(min(-len(piece) % BLOCK, end - position - len(piece)))
        if digests is None:
            yield encode(Write(position, len(piece))) + piece
        else:
            yield from _differing(piece, position, old=old, digests=digests)
        position += len(piece)


def _differing(piece: bytes, position: int, *, old: bytes, digests: bytearray) -> Iterator[bytes]:
    first = len(digests)
    view = memoryview(piece)
    digest, size = _KEYED.encrypt, DIGEST_BYTES
    for start in range(0, len(piece), BLOCK):
        digests += digest(_NONCE, b"", view[start : start + BLOCK])
    if digests[first:] == old[first : len(digests)]:
        return
    begun = -1
    count = (len(digests) - first) // size
    for index in range(count + 1):
        at = first + index * size
        differs = index < count and digests[at : at + size] != old[at : at + size]
        if differs and begun < 0:
            begun = index
        elif not differs and begun >= 0:
            run = view[begun * BLOCK : index * BLOCK]
            yield encode(Write(position + begun * BLOCK, len(run))) + bytes(run)
            begun = -1


def _segments(descriptor: int, size: int) -> Iterator[tuple[int, int, bool]]:
    # (start, end, is data), on block borders but for the end of the file.
    position = 0
    while position < size:
        data = _seek(descriptor, position, os.SEEK_DATA, size=size) // BLOCK * BLOCK
        data = max(data, position)
        if data >= size:
            yield position, size, False
            return
        if data > position:
            yield position, data, False
        hole = _seek(descriptor, data, os.SEEK_HOLE, size=size)
        end = min(-(-hole // BLOCK) * BLOCK, size)
        if end <= data:
            end = min(data + BLOCK, size)
        yield data, end, True
        position = end


def _seek(descriptor: int, position: int, whence: int, *, size: int) -> int:
    try:
        return min(os.lseek(descriptor, position, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise

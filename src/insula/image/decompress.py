# SPDX-License-Identifier: Apache-2.0
"""Compression of an archive, recognised by its first bytes: gzip, zstd, xz, or none.

Sources: RFC 1952, RFC 8878, xz file format 1.1.
"""

import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, cast

from insula.image import zstd
from insula.image.tarheader import ByteSource
from insula.model.errors import InvalidImage

if TYPE_CHECKING:
    from typing_extensions import Buffer


class IteratorSource(io.RawIOBase):
    """Read an iterator of byte strings as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces: Iterator[bytes] = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


class _Peeked(io.RawIOBase):
    # A source whose first bytes were looked at.
    def __init__(self, head: bytes, source: ByteSource) -> None:
        super().__init__()
        self._head = head
        self._source = source

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            taken, self._head = self._head[:size], self._head[size:]
            return taken
        return self._source.read(1 << 20 if size < 0 else size)

    def readinto(self, buffer: "Buffer", /) -> int:  # isal reads so
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)


class _Checked:
    # A decompressor whose many errors become one.
    def __init__(self, kind: str, source: ByteSource) -> None:
        self._kind = kind
        self._source = source
        self._errors: tuple[type[Exception], ...] = (
            EOFError,
            OSError,
            zlib.error,
            lzma.LZMAError,
            *zstd.errors(),
        )

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except self._errors as error:
            reason = "it is truncated" if isinstance(error, EOFError) else str(error)
            raise InvalidImage(f"cannot read the archive: {self._kind}: {reason}") from error


def _gzip(source: io.RawIOBase) -> ByteSource:
    from isal import igzip

    return cast(ByteSource, igzip.open(cast("IO[bytes]", source), "rb"))  # type: ignore[no-untyped-call]


def _xz(source: io.RawIOBase) -> ByteSource:
    return cast(ByteSource, lzma.LZMAFile(cast("IO[bytes]", source), "rb"))


_FORMATS: tuple[tuple[bytes, str, Callable[[io.RawIOBase], ByteSource]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", zstd.stream),
    (b"\xfd7zXZ\x00", "xz", _xz),
)


def decompressed(source: ByteSource) -> ByteSource:
    """Return the plain bytes of a source.  Raises (also while reading): InvalidImage for a damaged stream."""
    head = b""
    while len(head) < 6:
        piece = source.read(6 - len(head))
        if not piece:
            break
        head += piece
    if not head:
        raise InvalidImage("cannot read the archive: it is empty")
    peeked = _Peeked(head, source)
    for magic, kind, opened in _FORMATS:
        if head.startswith(magic):
            return _Checked(kind, opened(peeked))
    return peeked

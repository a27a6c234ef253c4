# SPDX-License-Identifier: Apache-2.0
"""Layers on disk, each under the digest of its content.

    layers/sha256/<hex>/fs          the files, owners as in a container (0..65535); mounts shift them, nothing is chowned
    layers/sha256/<hex>/meta.json   LayerMeta
    layers/tmp/<random>/            being made; removed at the next start

The digest is the sha256 of the canonical tar (`pack`), so equal content has one digest on every host and a received
layer can be checked.  A layer appears by one rename, after its files are on the disk.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from insula.image.decompress import decompressed
from insula.image.pack import pack_tree
from insula.image.tarball import Limits, unpack_tree
from insula.image.tarheader import ByteSource
from insula.kernel.sync import sync_file_system
from insula.model.errors import ImageNotFound, InvalidImage
from insula.model.record import LayerRecord

_HEX = frozenset("0123456789abcdef")


class LayerMeta(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    size_bytes: int
    """Of the canonical tar."""
    created: float
    media: str = ""
    """Where it came from: debian, import, peer."""
    skipped_devices: int = 0
    version: int = 1


class Filled(NamedTuple):
    """What a folder was filled with."""

    digest: str
    size_bytes: int
    """Of the canonical tar."""
    skipped_devices: int


class Filler(Protocol):
    """Unpacks a tar, plain or compressed, into an opened folder, and measures what it has become.

    Raises: InvalidImage, DiskFull.
    """

    def __call__(self, stream: ByteSource, root_fd: int, *, limits: Limits | None) -> Filled: ...


def fill(stream: ByteSource, root_fd: int, *, limits: Limits | None) -> Filled:
    """The filler that works in this thread."""
    skipped = unpack_tree(decompressed(stream), root_fd, limits=limits).skipped_devices
    digest, size = hashlib.sha256(), 0
    for piece in pack_tree(root_fd):
        digest.update(piece)
        size += len(piece)
    sync_file_system(root_fd)
    return Filled(f"sha256:{digest.hexdigest()}", size, skipped)


class Layers:
    """The layers below one state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_digest = folder / "sha256"
        self._tmp = folder / "tmp"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._by_digest.mkdir(mode=0o700, exist_ok=True)
        self._tmp.mkdir(mode=0o700, exist_ok=True)

    def clean(self) -> None:
        """Remove what an earlier daemon left half-made.  Call once, before any layer is made."""
        for leftover in self._tmp.iterdir():
            shutil.rmtree(leftover)

    def folder(self, digest: str) -> Path:
        """Return the folder of a layer's files.  Raises: ImageNotFound if the layer is absent."""
        place = self._place(digest) / "fs"
        if not place.is_dir():
            raise ImageNotFound(f"cannot find layer `{digest}`: it is not on this host")
        return place

    def has(self, digest: str) -> bool:
        return (self._place(digest) / "meta.json").is_file()

    def list(self) -> list[LayerRecord]:
        return [self.get(f"sha256:{entry.name}") for entry in sorted(self._by_digest.iterdir())]

    def get(self, digest: str) -> LayerRecord:
        """Return what is known of a layer.  Raises: ImageNotFound."""
        try:
            text = (self._place(digest) / "meta.json").read_bytes()
        except FileNotFoundError:
            raise ImageNotFound(f"cannot find layer `{digest}`: it is not on this host") from None
        meta = msgspec.json.decode(text, type=LayerMeta)
        return LayerRecord(digest=meta.digest, size_bytes=meta.size_bytes)

    def pack(self, digest: str) -> Iterator[bytes]:
        """Stream the canonical tar of a layer, to be sent to a host where it is absent."""
        root_fd = os.open(self.folder(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from pack_tree(root_fd)
        finally:
            os.close(root_fd)

    def unpack(
        self,
        stream: ByteSource,
        *,
        expected: str | None = None,
        media: str = "import",
        limits: Limits | None = None,
        filler: Filler = fill,
    ) -> LayerRecord:
        """Make a layer of a tar, plain or compressed.

        expected: the digest that it must have, else it is refused.  filler: does it elsewhere.
        Raises: InvalidImage, DiskFull; nothing of it stays then.
        """
        return self._make(lambda fd: filler(stream, fd, limits=limits), expected, media=media)

    def remove(self, digest: str) -> None:
        """Remove a layer; nothing may use it.  One that is absent is no error."""
        place = self._place(digest)
        doomed = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            place.rename(doomed / "layer")
        except FileNotFoundError:
            pass
        shutil.rmtree(doomed)

    def _place(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or len(name) != 64 or not _HEX.issuperset(name):
            raise InvalidImage(f"cannot use layer `{digest[:80]}`: not sha256: and 64 hexadecimal digits")
        return self._by_digest / name

    def _make(self, work_in: Callable[[int], Filled], expected: str | None, *, media: str) -> LayerRecord:
        work = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            (work / "fs").mkdir(mode=0o755)
            root_fd = os.open(work / "fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.utime(root_fd, ns=(0, 0))  # for archives without an entry for their root
                found = work_in(root_fd)
                if expected is not None and found.digest != expected:
                    raise InvalidImage(f"cannot accept layer `{expected}`: its content is `{found.digest}`")
                meta = LayerMeta(
                    digest=found.digest,
                    size_bytes=found.size_bytes,
                    created=time.time(),
                    media=media,
                    skipped_devices=found.skipped_devices,
                )
                (work / "meta.json").write_bytes(msgspec.json.encode(meta))
                sync_file_system(root_fd)
            finally:
                os.close(root_fd)
            self._publish(work, found.digest)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return LayerRecord(digest=found.digest, size_bytes=found.size_bytes)

    def _publish(self, work: Path, digest: str) -> None:
        place = self._place(digest)
        if place.exists():
            return  # equal content, made earlier or at the same time
        try:
            work.rename(place)
        except OSError:
            if not place.exists():
                raise
            return
        fd = os.open(self._by_digest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

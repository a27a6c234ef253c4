# SPDX-License-Identifier: Apache-2.0
"""Unpack an archive that nobody vouches for into an empty folder, and nowhere else.

Every entry is opened part by part beneath the folder's descriptor, links never followed, so no name and no symbolic
link of the archive leads out.  Refused: absolute paths, `..`, NUL, paths and hard links through symbolic links, ids
outside 0..65535, whatever `tarheader` refuses, more than `Limits`.  Skipped and counted: device nodes.

Three forms: a LAYER has whiteouts as OCI has them (`.wh.` names) and gets them as overlayfs has them; an UPPER is the
writable layer of a container from a paired host, whiteouts and marks of overlayfs as they are; PLAIN is any folder, of a container that may use it meanwhile: nothing
means a removal, and what the archive does not name keeps its owner, mode and time.

Sources: OCI image-spec, layer.md; overlayfs.rst, "whiteouts and opaque directories".
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from insula.image.tarheader import CHUNK, MAX_PATH_BYTES, ByteSource, Entry, Kind, TarReader, shown
from insula.model.errors import DiskFull, ImageTooLarge, InvalidImage

MAX_ID = 65535
MAX_DEPTH = 200  # folders deeper than this are attacks; removal and walks stay within their means
OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"
WHITEOUT_PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
_OPEN_DIRECTORIES = 64
_ZEROS = bytes(CHUNK)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")


class Form(StrEnum):
    LAYER = "layer"
    UPPER = "upper"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may cost.  A file of zeros takes no disk, but counts as what it claims to be."""

    entries: int = 2_000_000
    size_bytes: int = 256 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    entries: int
    size_bytes: int
    """Of the files' contents."""
    skipped_devices: int


def unpack_tree(
    source: ByteSource, root_fd: int, *, form: Form = Form.LAYER, limits: Limits | None = None
) -> Unpacked:
    """Unpack a plain tar into a folder; see `decompress.decompressed` for compressed ones.

    Raises: InvalidImage naming entry and reason, DiskFull.  What was unpacked before stays: the caller removes it.
    """
    with _Unpacker(root_fd, form=form, limits=limits or Limits()) as unpacker:
        for entry in (reader := TarReader(source)):
            with _explained(entry):
                unpacker.add(entry, reader)
        unpacker.finish_directories()
        return Unpacked(
            entries=unpacker.entries, size_bytes=unpacker.size_bytes, skipped_devices=unpacker.skipped_devices
        )


@contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name, reason = shown(entry.path), os.strerror(error.errno or 0).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"cannot unpack `{name}`: {reason}", hint="insula image rm frees space") from error
        raise InvalidImage(f"cannot unpack `{name}`: {reason}") from error


def is_too_deep(path: bytes) -> bool:
    """Tell whether nobody would take a file of that name from here, so that it need not be sent."""
    return path.count(b"/") >= MAX_DEPTH or len(path) >= MAX_PATH_BYTES


def _parts(path: bytes, *, what: str) -> tuple[bytes, ...]:
    # The parts of a path, none of which is special.
    if path.startswith(b"/"):
        raise InvalidImage(f"cannot unpack `{shown(path)}`: {what} is absolute")
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise InvalidImage(f"cannot unpack `{shown(path)}`: {what} contains `..`")
    if b"\0" in path:
        raise InvalidImage(f"cannot unpack `{shown(path)}`: {what} contains a zero byte")
    if len(path) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise InvalidImage(f"cannot unpack `{shown(path)}`: {what} is too long or too deep")
    return parts


class _Directories:
    """Descriptors of folders below the root, opened part by part, the last few kept open."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self.implied: set[tuple[bytes, ...]] = {()}
        """Folders that had no entry of their own when something in them came."""
        self._open: OrderedDict[tuple[bytes, ...], int] = OrderedDict()

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def open(self, parts: tuple[bytes, ...], *, create: bool = True) -> int:
        """Return a descriptor that stays good until the next call."""
        known = len(parts)
        while known and parts[:known] not in self._open:
            known -= 1
        fd = self._open[parts[:known]] if known else self._root_fd
        for depth in range(known, len(parts)):
            fd = self._open_part(fd, parts[: depth + 1], create=create)
            self._open[parts[: depth + 1]] = fd
        if parts:
            self._open.move_to_end(parts)
        while len(self._open) > max(_OPEN_DIRECTORIES, len(parts)):
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _open_part(self, parent_fd: int, parts: tuple[bytes, ...], *, create: bool) -> int:
        path = shown(b"/".join(parts))
        try:
            return os.open(parts[-1], _DIRECTORY, dir_fd=parent_fd)
        except FileNotFoundError:
            if not create:
                raise
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise InvalidImage(
                f"cannot unpack below `{path}`: it is a link or a file, not a directory"
            ) from None
        os.mkdir(parts[-1], 0o755, dir_fd=parent_fd)
        self.implied.add(parts)
        return os.open(parts[-1], _DIRECTORY, dir_fd=parent_fd)


class _Unpacker:
    def __init__(self, root_fd: int, *, form: Form, limits: Limits) -> None:
        self._root_fd = root_fd
        self._form = form
        self._limits = limits
        self._directories = _Directories(root_fd)
        self._times: dict[tuple[bytes, ...], int] = {}
        self.entries = self.size_bytes = self.skipped_devices = 0

    def __enter__(self) -> "_Unpacker":
        return self

    def __exit__(self, *_: object) -> None:
        self._directories.close()

    def add(self, entry: Entry, reader: TarReader) -> None:
        self._count(entry)
        parts = _parts(entry.path, what="the path")
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise InvalidImage(f"cannot unpack `{shown(entry.path)}`: the root is not a directory")
            if self._form is not Form.PLAIN:
                self._make_directory(entry, parts)
        elif self._form is Form.LAYER and any(part.startswith(WHITEOUT_PREFIX) for part in parts):
            self._whiteout(parts)
        elif entry.kind is Kind.DIRECTORY:
            self._make_directory(entry, parts)
        else:
            self._make_file(entry, parts, reader=reader)

    def _count(self, entry: Entry) -> None:
        self.entries += 1
        self.size_bytes += entry.size
        name = shown(entry.path)
        if self.entries > self._limits.entries:
            raise ImageTooLarge(f"cannot unpack `{name}`: more than {self._limits.entries} entries")
        if self.size_bytes > self._limits.size_bytes:
            raise ImageTooLarge(f"cannot unpack `{name}`: more than {self._limits.size_bytes} bytes")
        if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
            raise InvalidImage(
                f"cannot unpack `{name}`: its owner {entry.uid}:{entry.gid} is not within 0 to {MAX_ID}",
                hint="containers have 65536 ids; make the archive with ids as seen inside",
            )

    def _make_directory(self, entry: Entry, parts: tuple[bytes, ...]) -> None:
        if parts:
            self._make_node(entry, parts)
        # A real descriptor, and not a path: metadata must not meet a link.
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directories.open(parts))
        try:
            self._set_metadata(fd, entry)
        finally:
            os.close(fd)
        self._times[parts] = entry.mtime_ns

    def _make_node(self, entry: Entry, parts: tuple[bytes, ...]) -> None:
        # Make the directory, unless it is there; what else has its name goes.
        parent_fd, name = self._directories.open(parts[:-1]), parts[-1]
        before = _status(parent_fd, name)
        if before is not None and not stat.S_ISDIR(before.st_mode):
            os.unlink(name, dir_fd=parent_fd)
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            if _is_whiteout(before) and self._form is Form.LAYER:
                self._set_opaque(parts)
        elif before is None:
            os.mkdir(name, 0o700, dir_fd=parent_fd)

    def _make_file(self, entry: Entry, parts: tuple[bytes, ...], *, reader: TarReader) -> None:
        if entry.kind in (Kind.CHARACTER, Kind.BLOCK) and not self._is_carried_whiteout(entry):
            self.skipped_devices += 1
            return
        source = self._link_source(entry) if entry.kind is Kind.HARD_LINK else None
        try:
            parent_fd, name = self._directories.open(parts[:-1]), parts[-1]
            before = _status(parent_fd, name)
            if before is not None:
                if stat.S_ISDIR(before.st_mode):
                    raise InvalidImage(f"cannot unpack `{shown(entry.path)}`: a directory has its name")
                if source is not None and os.path.samestat(before, os.fstat(source)):
                    return
                os.unlink(name, dir_fd=parent_fd)
            self._create(entry, name, parent_fd=parent_fd, source=source, reader=reader)
        finally:
            if source is not None:
                os.close(source)

    def _is_carried_whiteout(self, entry: Entry) -> bool:
        is_zero = entry.kind is Kind.CHARACTER and entry.major == entry.minor == 0
        return is_zero and self._form is Form.UPPER

    def _link_source(self, entry: Entry) -> int:
        target = _parts(entry.link, what=f"the target `{shown(entry.link)}`")
        name = shown(entry.path)
        try:
            parent_fd = self._directories.open(target[:-1], create=False) if target else -1
            if parent_fd >= 0:
                fd = os.open(target[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    return fd
                os.close(fd)
        except FileNotFoundError:
            pass
        raise InvalidImage(
            f"cannot unpack `{name}`: its link target `{shown(entry.link)}` is no file of the archive"
        )

    def _create(
        self, entry: Entry, name: bytes, *, parent_fd: int, source: int | None, reader: TarReader
    ) -> None:
        match entry.kind:
            case Kind.FILE:
                fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent_fd)
                try:
                    _write_data(fd, entry, reader)
                    self._set_metadata(fd, entry)
                    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
                finally:
                    os.close(fd)
                return
            case Kind.HARD_LINK:
                os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=parent_fd, follow_symlinks=True)
                return
            case Kind.SYMLINK:
                if not 0 < len(entry.link) < MAX_PATH_BYTES or b"\0" in entry.link:
                    raise InvalidImage(
                        f"cannot unpack `{shown(entry.path)}`: its link target is empty or malformed"
                    )
                os.symlink(entry.link, name, dir_fd=parent_fd)
            case Kind.FIFO:
                os.mkfifo(name, entry.mode, dir_fd=parent_fd)
            case _:
                os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent_fd)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if entry.kind is Kind.FIFO:  # made here a moment ago in a folder that nobody else enters: no link
            os.chmod(name, entry.mode, dir_fd=parent_fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)

    def _set_metadata(self, fd: int, entry: Entry) -> None:
        # In this order: a change of the owner takes set-id bits and capabilities.
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for xattr in entry.xattrs:
            if self._is_kept(xattr.name):
                os.setxattr(fd, xattr.name, xattr.value)

    def _is_kept(self, name: str) -> bool:
        return name.startswith(_KEPT_XATTRS) or (self._form is Form.UPPER and name in (OPAQUE, REDIRECT))

    def _whiteout(self, parts: tuple[bytes, ...]) -> None:
        hidden = parts[-1][len(WHITEOUT_PREFIX) :]
        is_opaque = parts[-1] == OPAQUE_NAME
        if any(part.startswith(2 * WHITEOUT_PREFIX) for part in (parts[:-1] if is_opaque else parts)):
            return  # aufs' own bookkeeping, as in `.wh..wh.plnk`
        if hidden in (b"", b".", b"..") or any(part.startswith(WHITEOUT_PREFIX) for part in parts[:-1]):
            raise InvalidImage(f"cannot unpack `{shown(b'/'.join(parts))}`: a whiteout of nothing")
        if is_opaque:
            self._set_opaque(parts[:-1])
            return
        parent_fd = self._directories.open(parts[:-1])
        before = _status(parent_fd, hidden)
        if before is None:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent_fd)
            os.utime(hidden, ns=(0, 0), dir_fd=parent_fd, follow_symlinks=False)
        elif stat.S_ISDIR(before.st_mode):
            self._set_opaque((*parts[:-1], hidden))

    def _set_opaque(self, parts: tuple[bytes, ...]) -> None:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directories.open(parts))
        try:
            os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def finish_directories(self) -> None:
        """Give the folders their times, now that nothing is made in them any more."""
        implied = dict.fromkeys(self._directories.implied, 0) if self._form is not Form.PLAIN else {}
        for parts, mtime_ns in (implied | self._times).items():
            os.utime(b".", ns=(mtime_ns, mtime_ns), dir_fd=self._directories.open(parts))


def _status(parent_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _write_data(fd: int, entry: Entry, reader: TarReader) -> None:
    # Whole pieces of zeros become holes.
    written = 0
    for piece in reader.data():
        if len(piece) >= 65536 and piece == memoryview(_ZEROS)[: len(piece)]:
            os.lseek(fd, len(piece), os.SEEK_CUR)
            written += len(piece)
            continue
        while piece:
            count = os.write(fd, piece)
            written += count
            piece = piece[count:]
    os.ftruncate(fd, entry.size)

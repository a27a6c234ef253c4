# SPDX-License-Identifier: Apache-2.0
"""Take the rounds of a folder (`files.py`): apply what the source says, and never outside of the folder.

The source is believed no more than an archive: names are resolved beneath the folder without following a link, ids and
attributes are checked, and whatever does not fit is a ProtocolError.  The folder is nobody else's until the restore.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import assert_never

import msgspec

from insula.image.tarball import MAX_DEPTH, MAX_ID
from insula.kernel.libc import fallocate
from insula.kernel.paths import open_beneath
from insula.kernel.whole import write_at
from insula.migrate.edits import (
    LENGTH,
    MAX_RECORD,
    Attributes,
    Hole,
    Link,
    Make,
    Move,
    Open,
    Record,
    Remove,
    Write,
    decode,
)
from insula.migrate.files import KEPT_XATTRS
from insula.migrate.wire import StreamFile, Wire
from insula.model.errors import DiskFull, ProtocolError
from insula.model.migration import FileRound

MAX_FILE_BYTES = 1 << 44
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_STAGE = b".insula-moving"
_PIECE = 512 << 10
_NODES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)


class FileTarget:
    """One folder on the target."""

    def __init__(self, folder: int) -> None:
        """folder: owned by the caller, open until `close`."""
        self._root = os.dup(folder)
        self._file = -1
        self._parent: tuple[bytes, int] | None = None
        self._stage = -1

    def close(self) -> None:
        self._end_round()
        os.close(self._root)

    def receive(self, message: FileRound, wire: Wire) -> None:
        """Take the round that the message announces.

        Raises: ProtocolError for what does not fit, DiskFull; MigrationFailed if the peer is gone.
        """
        stream = StreamFile(wire.receive_stream())
        record: Record | None = None
        try:
            for record in _records(stream):
                self._apply(record, stream)
            stream.drain()
        except OSError as error:
            name = getattr(record, "name", message.volume.encode()).decode(errors="replace")[:200]
            reason = os.strerror(error.errno or 0).lower()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"cannot write `{name}`: {reason}") from error
            raise ProtocolError(f"cannot change `{name}` as the source says: {reason}") from error
        finally:
            self._end_round()

    def _end_round(self) -> None:
        self._close_file()
        self._close_parent()
        if self._stage >= 0:
            status = os.stat(b".", dir_fd=self._root)
            for name in os.listdir(self._stage):  # what was moved and not wanted again; no folders
                os.unlink(name, dir_fd=self._stage)
            os.close(self._stage)
            self._stage = -1
            os.rmdir(_STAGE, dir_fd=self._root)
            os.utime(b".", ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=self._root)

    def _apply(self, record: Record, stream: StreamFile) -> None:
        match record:
            case Move():
                parent, name = self._place(record.name)
                if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise ProtocolError("cannot move what is no file out of the way")
                os.rename(name, b"%d" % record.number, src_dir_fd=parent, dst_dir_fd=self._staging())
            case Remove():
                self._remove(record.name)
            case Make():
                self._make(record)
            case Link():
                self._link(record)
            case Open():
                self._open(record)
            case Write():
                self._write(record, stream)
            case Hole():
                _check_range(record.offset, record.size)
                if record.size:
                    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
                    fallocate(self._opened(), mode, record.offset, record.size)
            case Attributes():
                self._close_file()
                self._set_attributes(record)
            case _:
                assert_never(record)

    # -- names

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """Return the folder of a name, good until the next call, and its last part."""
        _check_name(path)
        folder, _, name = path.rpartition(b"/")
        if self._parent is None or self._parent[0] != folder:
            self._close_parent()
            flags = os.O_PATH | os.O_DIRECTORY
            self._parent = (folder, open_beneath(self._root, folder or b".", flags=flags))
        return self._parent[1], name

    def _close_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _staging(self) -> int:
        if self._stage < 0:
            os.mkdir(_STAGE, 0o700, dir_fd=self._root)
            self._stage = open_beneath(self._root, _STAGE, flags=os.O_RDONLY | os.O_DIRECTORY)
        return self._stage

    def _remove(self, path: bytes) -> None:
        parent, name = self._place(path)
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    def _make(self, record: Make) -> None:
        parent, name = self._place(record.name)
        if record.number:
            os.rename(b"%d" % record.number, name, src_dir_fd=self._staging(), dst_dir_fd=parent)
        elif record.kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=parent)
        elif record.kind == stat.S_IFLNK:
            if not record.target or b"\0" in record.target:
                raise ProtocolError("cannot make a symbolic link to nothing")
            os.symlink(record.target, name, dir_fd=parent)
        elif record.kind == stat.S_IFCHR:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)  # a whiteout, never another device
        elif record.kind in _NODES:
            os.mknod(name, record.kind | 0o600, dir_fd=parent)
        else:
            raise ProtocolError(f"cannot make a node of kind {record.kind:o}")

    def _link(self, record: Link) -> None:
        _check_name(record.to)
        source = open_beneath(self._root, record.to, flags=os.O_PATH | os.O_NOFOLLOW)
        try:
            parent, name = self._place(record.name)
            os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=parent, follow_symlinks=True)
        finally:
            os.close(source)

    # -- contents

    def _open(self, record: Open) -> None:
        self._close_file()
        if not 0 <= record.size <= MAX_FILE_BYTES:
            raise ProtocolError(f"cannot make a file of {record.size} bytes")
        _check_name(record.name)
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = open_beneath(self._root, record.name, flags=flags)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise ProtocolError("cannot write into what is no file")
        os.ftruncate(self._file, record.size)

    def _opened(self) -> int:
        if self._file < 0:
            raise ProtocolError("cannot write: no file is open")
        return self._file

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, record: Write, stream: StreamFile) -> None:
        _check_range(record.offset, record.size)
        position, left = record.offset, record.size
        while left:
            piece = _exactly(stream, min(left, _PIECE))
            write_at(self._opened(), piece, position)
            position, left = position + len(piece), left - len(piece)

    # -- attributes

    def _set_attributes(self, record: Attributes) -> None:
        if not (0 <= record.uid <= MAX_ID and 0 <= record.gid <= MAX_ID):
            raise ProtocolError(f"cannot give a file to {record.uid}:{record.gid}")
        times = (record.mtime_ns, record.mtime_ns)
        if not record.name:
            parent, name = self._root, b"."
        else:
            parent, name = self._place(record.name)
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        # In this order: a change of the owner takes set-id bits and capabilities.
        os.chown(name, record.uid, record.gid, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(mode):  # nobody but us changes names here
            os.chmod(name, record.mode & 0o7777, dir_fd=parent)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            self._set_xattrs(record)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _set_xattrs(self, record: Attributes) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = open_beneath(self._root, record.name or b".", flags=flags)
        try:
            wanted = dict(record.xattrs)
            for name in os.listxattr(fd):
                if name.startswith(KEPT_XATTRS) and name not in wanted:
                    with contextlib.suppress(FileNotFoundError):  # gone with the mode
                        os.removexattr(fd, name)
            for name, value in wanted.items():
                if not name.startswith(KEPT_XATTRS):
                    raise ProtocolError(f"cannot set attribute `{name[:80]}`")
                os.setxattr(fd, name, value)
        finally:
            os.close(fd)


def _records(stream: StreamFile) -> Iterator[Record]:
    while header := stream.read(1):
        length = LENGTH.unpack(header + _exactly(stream, LENGTH.size - 1))[0]
        if length > MAX_RECORD:
            raise ProtocolError(f"cannot read a change of {length} bytes")
        try:
            yield decode(_exactly(stream, length))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"cannot read a change of files: {error}") from error


def _exactly(stream: StreamFile, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = stream.read(size - len(found))
        if not piece:
            raise ProtocolError("cannot read a change of files: it ends early")
        found += piece
    return bytes(found)


def _check_name(path: bytes) -> None:
    parts = path.split(b"/")
    if b"\0" in path or len(parts) > MAX_DEPTH or any(part in (b"", b".", b"..") for part in parts):
        raise ProtocolError(f"cannot use the name `{path[:200].decode(errors='replace')}`")
    if parts[0] == _STAGE:
        raise ProtocolError("cannot use the name of our own folder")


def _check_range(offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > MAX_FILE_BYTES:
        raise ProtocolError(f"cannot write {size} bytes at {offset}")

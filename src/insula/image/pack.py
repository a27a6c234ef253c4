# SPDX-License-Identifier: Apache-2.0
"""Write a folder as a tar: the same bytes for the same content, on any host.

The order is fixed: each folder's own entry, then its other entries by name, then its folders by name.  Ids are those on
disk.  Sockets and devices are left out; of the extended attributes those stay that `tarball` takes.  A tree may change
meanwhile (pre-copy of a running container): the archive is then whole, but of no single moment.

Sources: as `tarball`; lseek(2), SEEK_DATA.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator

from insula.image.tarball import MAX_ID, OPAQUE, OPAQUE_NAME, REDIRECT, WHITEOUT_PREFIX, Form, is_too_deep
from insula.image.tarheader import BLOCK, CHUNK, Entry, Kind, Xattr, encode, shown
from insula.kernel.paths import open_in_root
from insula.model.errors import InvalidImage

_ZEROS = bytes(CHUNK)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")


def pack_tree(
    root_fd: int, *, form: Form = Form.LAYER, prefix: bytes = b"", empty: Collection[bytes] = ()
) -> Iterator[bytes]:
    """Stream a folder as a canonical tar, in pieces of about 1 MiB.

    form: LAYER writes whiteouts as `.wh.` names, UPPER as the nodes and marks that overlayfs made, PLAIN has none.
    prefix: stands before every path, as `name/`.  empty: paths of folders of which nothing but themselves is packed.
    Raises: InvalidImage for an owner outside 0..65535, a LAYER's own file called `.wh.…`, and what lies too deep to be
    unpacked again; OSError.
    """
    return _whole(_Packer(root_fd, form=form, prefix=prefix, empty=empty).pieces())


def pack_file(parent_fd: int, name: bytes) -> Iterator[bytes]:
    """Stream one file, link or FIFO as a tar; nothing of it for a device or socket.

    Raises: as `pack_tree`.
    """
    return _whole(_Packer(parent_fd, form=Form.PLAIN).one(name))


def _whole(pieces: Iterator[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(pending)
            pending, size = [], 0
    pending.append(bytes(2 * BLOCK))
    yield b"".join(pending)


class _Packer:
    def __init__(
        self, root_fd: int, *, form: Form, prefix: bytes = b"", empty: Collection[bytes] = ()
    ) -> None:
        self._root_fd = root_fd
        self._empty = frozenset(empty)
        self._form = form
        self._prefix = prefix
        self._first_links: dict[tuple[int, int], bytes] = {}

    def one(self, name: bytes) -> Iterator[bytes]:
        status = os.stat(name, dir_fd=self._root_fd, follow_symlinks=False)
        yield from self._other(self._root_fd, name, path=name, status=status)

    def pieces(self) -> Iterator[bytes]:
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            try:
                fd = open_in_root(self._root_fd, path or b".", flags=_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone, or something else by now
            try:
                below: list[bytes] = []
                yield from self._directory(fd, path, below=below)
                waiting += reversed(below)
            finally:
                os.close(fd)

    def _directory(self, fd: int, path: bytes, *, below: list[bytes]) -> Iterator[bytes]:
        xattrs = self._xattrs(fd)
        own = path + b"/" if path else b"" if self._prefix else b"./"
        yield encode(self._entry(os.fstat(fd), own, kind=Kind.DIRECTORY, xattrs=xattrs))
        if self._form is Form.LAYER and _has_xattr(fd, OPAQUE):
            yield encode(Entry(path=_join(path, OPAQUE_NAME), kind=Kind.FILE))
        for name in sorted(map(os.fsencode, os.listdir(fd))) if path not in self._empty else ():
            if self._form is not Form.PLAIN and is_too_deep(_join(path, name)):
                raise InvalidImage(
                    f"cannot pack `{shown(path[:40])}…`: it lies too deep",
                    hint="remove it, or pack it into an archive",
                )
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    below.append(_join(path, name))
                else:
                    yield from self._other(fd, name, path=_join(path, name), status=status)
            except FileNotFoundError:
                continue

    def _other(self, fd: int, name: bytes, *, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        mode = status.st_mode
        if self._form is Form.LAYER:
            if stat.S_ISCHR(mode) and status.st_rdev == 0:
                parent = path[: len(path) - len(name)]
                yield encode(Entry(path=parent + WHITEOUT_PREFIX + name, kind=Kind.FILE))
                return
            if name.startswith(WHITEOUT_PREFIX):
                raise InvalidImage(f"cannot pack `{shown(path)}`: in a layer `.wh.` means a removed file")
        if (
            stat.S_ISSOCK(mode)
            or stat.S_ISBLK(mode)
            or (stat.S_ISCHR(mode) and not self._is_whiteout(status))
        ):
            return
        is_plain = stat.S_ISREG(mode)
        if status.st_nlink > 1 and not stat.S_ISCHR(mode):
            first = self._first_links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                yield encode(self._entry(status, path, kind=Kind.HARD_LINK, link=first))
                return
        if is_plain:
            yield from self._file(fd, name, path=path)
        elif stat.S_ISLNK(mode):
            target = os.readlink(name, dir_fd=fd)
            yield encode(self._entry(status, path, kind=Kind.SYMLINK, link=target))
        else:
            yield encode(self._entry(status, path, kind=Kind.FIFO if stat.S_ISFIFO(mode) else Kind.CHARACTER))

    def _is_whiteout(self, status: os.stat_result) -> bool:
        return status.st_rdev == 0 and self._form is Form.UPPER

    def _file(self, parent_fd: int, name: bytes, *, path: bytes) -> Iterator[bytes]:
        try:
            fd = os.open(name, _FILE, dir_fd=parent_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                return  # replaced meanwhile
            raise
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                yield encode(self._entry(status, path, kind=Kind.FILE, xattrs=self._xattrs(fd)))
                yield from _data(fd, status)
        finally:
            os.close(fd)

    def _entry(
        self,
        status: os.stat_result,
        path: bytes,
        *,
        kind: Kind,
        link: bytes = b"",
        xattrs: tuple[Xattr, ...] = (),
    ) -> Entry:
        if status.st_uid > MAX_ID or status.st_gid > MAX_ID:
            raise InvalidImage(
                f"cannot pack `{shown(path)}`: its owner {status.st_uid}:{status.st_gid} is not within 0 to {MAX_ID}"
            )
        is_whole = kind is Kind.FILE
        return Entry(
            path=self._prefix + path,
            kind=kind,
            mode=0o777 if kind is Kind.SYMLINK else stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if is_whole else 0,
            mtime_ns=status.st_mtime_ns,
            link=self._prefix + link if kind is Kind.HARD_LINK else link,
            xattrs=xattrs,
        )

    def _xattrs(self, fd: int) -> tuple[Xattr, ...]:
        names = [name for name in os.listxattr(fd) if self._is_kept(name)]
        return tuple(Xattr(name=name, value=os.getxattr(fd, name)) for name in names) if names else ()

    def _is_kept(self, name: str) -> bool:
        return name.startswith(_KEPT_XATTRS) or (self._form is Form.UPPER and name in (OPAQUE, REDIRECT))


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _has_xattr(fd: int, name: str) -> bool:
    return name in os.listxattr(fd) and os.getxattr(fd, name) == b"y"


def _data(fd: int, status: os.stat_result) -> Iterator[bytes]:
    # Exactly as many bytes as the header says, whatever happens to the file meanwhile.
    size = status.st_size
    has_holes = status.st_blocks * 512 < size
    position = 0
    while position < size:
        if has_holes:
            start = _next_data(fd, position, size=size)
            yield from _zeros(start - position)
            position = start
            if position == size:
                break
        piece = os.pread(fd, min(CHUNK, size - position), position)
        if not piece:
            yield from _zeros(size - position)
            break
        yield piece
        position += len(piece)
    yield bytes(-size % BLOCK)


def _next_data(fd: int, position: int, *, size: int) -> int:
    try:
        return min(os.lseek(fd, position, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[: min(count, CHUNK)]
        count -= CHUNK

# SPDX-License-Identifier: Apache-2.0
"""Tar streams of `insula cp`: pack a local path, unpack one safely.

Unpacking trusts nothing of what a container sent: names stay below the folder, links are made last (so that nothing is
written through them), devices and FIFOs are skipped, set-id bits are dropped.  This does not lean on `tarfile`'s filters:
early 3.11 has none.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile

from insula.model.errors import InvalidImage, PathEscapes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

READ_SIZE = 1 << 20
KEPT_MODE = 0o777


def pack(path: str, name: str, *, follow_links: bool, keep_owner: bool) -> Iterator[bytes]:
    """Yield a tar of the path (a folder with all below), whose first name is `name`; `.` for contents only."""
    book = tarfile.TarFile(
        fileobj=io.BytesIO(), mode="w", dereference=follow_links, format=tarfile.PAX_FORMAT
    )
    for source, target in _walk(path, name):
        if stat.S_ISSOCK(os.lstat(source).st_mode):
            continue  # tar has no word for it
        member = book.gettarinfo(source, arcname=target)
        if not keep_owner:
            member.uid = member.gid = 0
            member.uname = member.gname = ""
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if member.isreg():
            yield from _content(source, member.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _walk(path: str, name: str) -> Iterator[tuple[str, str]]:
    yield path, name
    if os.path.isdir(path) and (not os.path.islink(path) or name == "."):
        for entry in sorted(os.listdir(path)):
            yield from _walk(os.path.join(path, entry), f"{name}/{entry}")


# A file that shrinks meanwhile is filled with zeros, one that grows is cut: the header is already out.
def _content(path: str, size: int) -> Iterator[bytes]:
    left = size
    with open(path, "rb") as file:
        while left:
            part = file.read(min(left, READ_SIZE)) or bytes(min(left, READ_SIZE))
            left -= len(part)
            yield part
    yield bytes(-size % tarfile.BLOCKSIZE)


class _Source(io.RawIOBase):
    """The parts of an HTTP body as a file to read."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def unpack(parts: Iterable[bytes], folder: str, *, name: str | None, keep_owner: bool) -> int:
    """Unpack a tar below the folder; return how many members were skipped.

    name: what the first component of all names becomes (`.`: the folder itself); None leaves it.
    Raises: PathEscapes; InvalidImage if it is no tar.
    """
    skipped = 0
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Source(parts), READ_SIZE), mode="r|") as tar:
            for member in tar:
                path = _place(folder, _renamed(member.name, name), is_link=member.issym())
                if member.issym():
                    links.append((member.linkname, path))
                elif not _create(tar, member, path=path, folder=folder, name=name):
                    skipped += 1
                elif keep_owner:
                    os.lchown(path, member.uid, member.gid)
    except tarfile.TarError as error:
        raise InvalidImage(f"cannot unpack into `{folder}`: {error}") from None
    for target, path in links:
        _remove(path)
        os.symlink(target, path)
    return skipped


def _create(
    tar: tarfile.TarFile, member: tarfile.TarInfo, *, path: str, folder: str, name: str | None
) -> bool:
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        os.chmod(path, member.mode & KEPT_MODE | 0o700)
    elif member.isreg():
        content = tar.extractfile(member)
        _remove(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            if content is not None:
                shutil.copyfileobj(content, file, READ_SIZE)
            os.fchmod(file.fileno(), member.mode & KEPT_MODE)
        os.utime(path, (member.mtime, member.mtime))
    elif member.islnk():
        source = _place(folder, _renamed(member.linkname, name), is_link=True)
        if not os.path.isfile(source) or os.path.islink(source):
            return False
        _remove(path)
        os.link(source, path, follow_symlinks=False)
    else:
        return False
    return True


def _renamed(member: str, name: str | None) -> str:
    words = [word for word in member.split("/") if word not in ("", ".")]
    if member.startswith("/") or ".." in words:
        raise PathEscapes(f"cannot unpack `{member}`: it leaves the folder")
    if name is not None:
        words[:1] = [word for word in (name,) if word != "."]
    return "/".join(words)


# No component below the folder may be a symbolic link, or the file would land elsewhere.
def _place(folder: str, relative: str, *, is_link: bool) -> str:
    root = os.path.realpath(folder)
    path = os.path.join(root, relative) if relative else root
    checked = os.path.dirname(path) if is_link or not os.path.isdir(path) else path
    if path != root and os.path.realpath(checked) != checked:
        raise PathEscapes(f"cannot unpack `{relative}` into `{folder}`: a symbolic link is in its way")
    return path


def _remove(path: str) -> None:
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
        os.unlink(path)

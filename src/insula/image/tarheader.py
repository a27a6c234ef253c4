# SPDX-License-Identifier: Apache-2.0
"""The tar format: headers to entries and back.

Reads ustar, PAX (path, linkpath, size, mtime, uid, gid, SCHILY.xattr.*) and GNU (long names, base-256 numbers); writes
ustar with PAX records only where a field does not fit, so that equal entries give equal bytes.  Out of scope: what an
entry may do to a file system (`tarball`).

Sources: POSIX pax(1), "pax Interchange Format"; GNU tar manual, "Basic Tar Format"; star(5) for SCHILY.xattr.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from insula.model.errors import InvalidImage

BLOCK = 512
CHUNK = 1 << 20
MAX_PATH_BYTES = 4096
MAX_PAX_BYTES = 1 << 20  # xattrs are at most 64 KiB each; more is an attack on memory
MAX_SIZE_BYTES = 1 << 46
_ZERO_BLOCK = bytes(BLOCK)
_OCTAL_SIZE_LIMIT = 8**11
_XATTR = b"SCHILY.xattr."


class Kind(StrEnum):
    FILE = "0"
    HARD_LINK = "1"
    SYMLINK = "2"
    CHARACTER = "3"
    BLOCK = "4"
    DIRECTORY = "5"
    FIFO = "6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Xattr:
    name: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[Xattr, ...] = ()


class ByteSource(Protocol):
    """What can be read: a file, a pipe, a decompressor."""

    def read(self, size: int, /) -> bytes: ...


def shown(path: bytes) -> str:
    """Return a path for a message: printable, one line, short."""
    text = path.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
    return text if len(text) <= 200 else text[:197] + "…"


# ---------------------------------------------------------------------------------------------------------- writing


def encode(entry: Entry) -> bytes:
    """Return the header blocks of an entry; its data follows, padded to whole blocks."""
    records = b"".join(_records(entry))
    head = b""
    if records:
        pax = Entry(path=b"././@PaxHeader", kind=Kind.FILE, mode=0o644, size=len(records))
        head = _block(pax, typeflag=b"x") + records + bytes(-len(records) % BLOCK)
    return head + _block(entry, typeflag=entry.kind.value.encode())


def _records(entry: Entry) -> Iterator[bytes]:
    if not (_is_utf8(entry.path) and _is_utf8(entry.link)):
        yield _record(b"hdrcharset", b"BINARY")
    if len(entry.path) > 100:
        yield _record(b"path", entry.path)
    if len(entry.link) > 100:
        yield _record(b"linkpath", entry.link)
    if entry.size >= _OCTAL_SIZE_LIMIT:
        yield _record(b"size", b"%d" % entry.size)
    seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds < _OCTAL_SIZE_LIMIT:
        yield _record(b"mtime", _decimal(entry.mtime_ns))
    for xattr in sorted(entry.xattrs, key=lambda each: each.name):
        yield _record(_XATTR + xattr.name.encode("utf-8", "surrogateescape"), xattr.value)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decimal(mtime_ns: int) -> bytes:
    sign, value = (b"-", -mtime_ns) if mtime_ns < 0 else (b"", mtime_ns)
    seconds, nanoseconds = divmod(value, 1_000_000_000)
    return sign + (b"%d.%09d" % (seconds, nanoseconds)).rstrip(b"0").rstrip(b".")


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def _block(entry: Entry, *, typeflag: bytes) -> bytes:
    seconds = entry.mtime_ns // 1_000_000_000
    size = entry.size if entry.size < _OCTAL_SIZE_LIMIT else 0
    device = entry.kind in (Kind.CHARACTER, Kind.BLOCK)
    header = b"".join(
        (
            entry.path[:100].ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (entry.mode & 0o7777, entry.uid, entry.gid),
            b"%011o\0%011o\0" % (size, seconds if 0 <= seconds < _OCTAL_SIZE_LIMIT else 0),
            b"        ",
            typeflag,
            entry.link[:100].ljust(100, b"\0"),
            b"ustar\00000",
            bytes(64),
            b"%07o\0%07o\0" % (entry.major if device else 0, entry.minor if device else 0),
            bytes(167),
        )
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(slots=True)
class _Pax:
    # What extended headers say about the next entry.
    path: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    mtime_ns: int | None = None
    uid: int | None = None
    gid: int | None = None
    xattrs: list[Xattr] = field(default_factory=list)


class TarReader:
    """Read a tar front to back, strictly.  Iterate over the entries; between two, take the data with `data`.

    Raises: InvalidImage for anything that is not a whole, plain tar.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = memoryview(b"")
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        pax, last = _Pax(), b""
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            header = self._exact(BLOCK, after=last)
            if header == _ZERO_BLOCK:
                self._drain()
                return
            _check_sum(header, after=last)
            typeflag = header[156:157]
            if typeflag in b"xgLK":
                self._extend(pax, header, after=last)
                continue
            entry = _entry(header, pax, after=last)
            pax, last = _Pax(), entry.path
            if entry.kind is Kind.FILE:
                self._left, self._padding = entry.size, -entry.size % BLOCK
            yield entry

    def data(self) -> Iterator[bytes | memoryview]:
        """Yield the rest of the current entry's data in pieces of up to CHUNK bytes."""
        while self._left:
            piece = self._some(self._left)
            self._left -= len(piece)
            yield piece

    def _some(self, limit: int) -> memoryview:
        if not self._buffer:
            self._buffer = memoryview(self._source.read(CHUNK))
            if not self._buffer:
                raise InvalidImage("cannot read the archive: it is truncated")
        piece = self._buffer[:limit]
        self._buffer = self._buffer[len(piece) :]
        return piece

    def _exact(self, count: int, *, after: bytes) -> bytes:
        if len(self._buffer) >= count:
            return bytes(self._some(count))
        pieces, missing = [], count
        while missing:
            try:
                piece = self._some(missing)
            except InvalidImage:
                raise InvalidImage(
                    f"cannot read the archive: it is truncated after `{shown(after)}`"
                ) from None
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._some(count))

    def _drain(self) -> None:
        # Padding after the end, at most a record of blocks; the checksum of a compressed stream is behind it.
        self._buffer = memoryview(b"")
        for _ in range(64):
            if not self._source.read(CHUNK):
                return
        raise InvalidImage("cannot read the archive: more than 64 MiB follow its end")

    def _extend(self, pax: _Pax, header: bytes, *, after: bytes) -> None:
        size = _number(header[124:136], after=after)
        if not 0 <= size <= MAX_PAX_BYTES:
            raise InvalidImage(f"cannot read the archive {_place(after)}: an extended header of {size} bytes")
        payload = self._exact(size, after=after)
        self._skip(-size % BLOCK)
        match header[156:157]:
            case b"L":
                pax.path = payload.rstrip(b"\0")
            case b"K":
                pax.link = payload.rstrip(b"\0")
            case b"x":
                _read_pax(payload, pax, after=after)
            case _:
                pass  # global headers: comments of git and the like, nothing about one entry


def _check_sum(header: bytes, *, after: bytes) -> None:
    expected = sum(header) - sum(header[148:156]) + 8 * 0x20
    if _number(header[148:156], after=after) != expected:
        raise InvalidImage(f"cannot read the archive {_place(after)}: wrong checksum of a header")


def _place(after: bytes) -> str:
    return f"after `{shown(after)}`" if after else "at its start: it is no tar"


def _number(text: bytes, *, after: bytes) -> int:
    if text[0] & 0x80:  # GNU base-256, two's complement
        value = int.from_bytes(text, "big", signed=False) & ((1 << (8 * len(text) - 1)) - 1)
        return value - (1 << (8 * len(text) - 1)) if text[0] & 0x40 else value
    digits = text.split(b"\0", 1)[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise InvalidImage(f"cannot read the archive {_place(after)}: a number of a header is malformed")
    return int(digits or b"0", 8)


def _read_pax(payload: bytes, pax: _Pax, *, after: bytes) -> None:
    position = 0
    while position < len(payload):
        digits, space, _ = payload[position : position + 20].partition(b" ")
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = payload[position + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not (space and equals and end <= len(payload) and payload[end - 1 : end] == b"\n"):
            raise InvalidImage(f"cannot read the archive {_place(after)}: malformed extended header")
        _set_pax(pax, key, value=value, after=after)
        position = end


def _set_pax(pax: _Pax, key: bytes, *, value: bytes, after: bytes) -> None:
    try:
        match key:
            case b"path":
                pax.path = value
            case b"linkpath":
                pax.link = value
            case b"size":
                pax.size = int(value)
            case b"uid":
                pax.uid = int(value)
            case b"gid":
                pax.gid = int(value)
            case b"mtime":
                pax.mtime_ns = _nanoseconds(value)
            case _ if key.startswith(_XATTR):
                pax.xattrs.append(
                    Xattr(name=key[len(_XATTR) :].decode("utf-8", "surrogateescape"), value=value)
                )
            case _ if key.startswith(b"GNU.sparse."):
                raise InvalidImage(
                    f"cannot read the archive {_place(after)}: sparse entries are not supported",
                    hint="make the tar without --sparse",
                )
            case _:
                pass
    except ValueError:
        raise InvalidImage(
            f"cannot read the archive {_place(after)}: `{shown(key)}` of an extended header is malformed"
        ) from None


def _nanoseconds(text: bytes) -> int:
    seconds, _, fraction = text.partition(b".")
    if fraction.strip(b"0123456789"):
        raise ValueError("not a decimal number")
    nanoseconds = int(fraction[:9].ljust(9, b"0") or b"0")
    value = abs(int(seconds or b"0")) * 1_000_000_000 + nanoseconds
    return -value if seconds.startswith(b"-") else value


def _entry(header: bytes, pax: _Pax, *, after: bytes) -> Entry:
    kind, path = _kind_and_path(header, pax, after=after)
    size = _number(header[124:136], after=path) if pax.size is None else pax.size
    entry = Entry(
        path=path,
        kind=kind,
        mode=_number(header[100:108], after=path) & 0o7777,
        uid=_number(header[108:116], after=path) if pax.uid is None else pax.uid,
        gid=_number(header[116:124], after=path) if pax.gid is None else pax.gid,
        size=size if kind is Kind.FILE else 0,
        mtime_ns=_number(header[136:148], after=path) * 1_000_000_000
        if pax.mtime_ns is None
        else pax.mtime_ns,
        link=header[157:257].split(b"\0", 1)[0] if pax.link is None else pax.link,
        xattrs=tuple(pax.xattrs),
    )
    if not 0 <= size <= MAX_SIZE_BYTES:
        raise InvalidImage(f"cannot read `{shown(path)}`: a size of {size} bytes")
    if not abs(entry.mtime_ns) < 1 << 62:
        raise InvalidImage(f"cannot read `{shown(path)}`: its time is out of range")
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        major, minor = _number(header[329:337], after=path), _number(header[337:345], after=path)
        return replace(entry, major=major, minor=minor)
    return entry


def _kind_and_path(header: bytes, pax: _Pax, *, after: bytes) -> tuple[Kind, bytes]:
    path = header[:100].split(b"\0", 1)[0]
    if pax.path is not None:
        path = pax.path
    elif header[257:263] == b"ustar\0" and header[345:346] != b"\0":
        path = header[345:500].split(b"\0", 1)[0] + b"/" + path
    flag = header[156:157]
    if flag in (b"\0", b"7"):
        flag = b"5" if path.endswith(b"/") else b"0"
    try:
        return Kind(flag.decode("ascii", "replace")), path
    except ValueError:
        reason = "sparse entries are not supported" if flag == b"S" else f"unknown type {flag!r}"
        raise InvalidImage(f"cannot read `{shown(path)}`: {reason}") from None

# SPDX-License-Identifier: Apache-2.0
"""Archives that nobody should trust, each under its number and name."""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable

import zstandard

from hosted import add_file, add_link, busybox_tar

Fill = Callable[[tarfile.TarFile], None]
OUT = "insula-escaped"
"""The name that must appear nowhere outside."""


def tar_of(*fills: Fill, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for fill in fills:
            fill(tar)
    return buffer.getvalue()


def file(name: str, data: bytes = b"x", *, mode: int = 0o644) -> Fill:
    return lambda tar: add_file(tar, name, data, mode=mode)


def link(name: str, target: str) -> Fill:
    return lambda tar: add_link(tar, name, target)


def entry(name: str, kind: bytes = tarfile.REGTYPE, /, **fields: object) -> Fill:
    """Add a header alone, with any fields of TarInfo."""

    def fill(tar: tarfile.TarFile) -> None:
        made = tarfile.TarInfo(name)
        made.type = kind
        for field, value in fields.items():
            setattr(made, field, value)
        size, made.size = made.size, 0
        if size:  # a header that promises data which never comes
            made.size = size
            tar.fileobj.write(made.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
            return
        tar.addfile(made)

    return fill


def hard(name: str, target: str) -> Fill:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def attributed(name: str, attribute: str, value: str = "x", *, kind: bytes = tarfile.DIRTYPE) -> Fill:
    return entry(name, kind, pax_headers={f"SCHILY.xattr.{attribute}": value}, mode=0o755)


CHAIN: tuple[Fill, ...] = tuple(link(f"l{number}", f"l{number + 1}") for number in range(60))

#: Names: I1.
NAMES: dict[str, bytes] = {
    "dots": tar_of(file(f"../../{OUT}")),
    "dots-inside": tar_of(file(f"a/../../{OUT}")),
    "dots-at-the-end": tar_of(entry("a/..", tarfile.DIRTYPE)),
    "absolute": tar_of(file(f"/tmp/{OUT}")),
    "absolute-dots": tar_of(file(f"/../{OUT}")),
    "dots-alone": tar_of(entry("..", tarfile.DIRTYPE, mode=0o777)),
    "empty": tar_of(entry("", mode=0o777)),
    "dot": tar_of(entry(".", tarfile.DIRTYPE, mode=0o755)),
    "dot-as-a-file": tar_of(file(".")),
    "very-long": tar_of(file("x/" * 2047 + "x")),
    "one-part-too-long": tar_of(file("y" * 300)),
    "deep": tar_of(file("/".join("d" * 300))),
    "not-unicode": tar_of(file("caf\udce9")),
    "zero-byte": tar_of(entry("safe\0../../x", pax_headers={"path": f"a\0../../{OUT}"})),
    "newline": tar_of(file("a\nroot::0:0::/:/bin/sh")),
    "case-twins": tar_of(file("readme"), file("README")),
    "same-twice": tar_of(file("a", b"1"), file("a", b"2")),
}
#: Links: I2.
LINKS: dict[str, bytes] = {
    "file-through-a-link": tar_of(link("out", "/tmp"), file(f"out/{OUT}")),
    "file-through-a-relative-link": tar_of(link("out", "../../../../../../tmp"), file(f"out/{OUT}")),
    "folder-through-a-link": tar_of(link("out", "/tmp"), entry(f"out/{OUT}", tarfile.DIRTYPE)),
    "folder-over-a-link": tar_of(link("out", "/tmp"), entry("out", tarfile.DIRTYPE, mode=0o700), file(f"out/{OUT}")),
    "link-over-a-folder": tar_of(entry("out", tarfile.DIRTYPE), link("out", "/tmp"), file(f"out/{OUT}")),
    "file-over-a-link": tar_of(link(OUT, f"/tmp/{OUT}"), file(OUT)),
    "chain": tar_of(*CHAIN, link("l60", "/tmp"), file(f"l0/{OUT}")),
    "circle": tar_of(link("a", "b"), link("b", "a"), file(f"a/{OUT}")),
    "through-proc": tar_of(link("out", "/proc/self/root/tmp"), file(f"out/{OUT}")),
    "through-a-descriptor": tar_of(link("out", "/proc/self/fd/0/.."), file(f"out/{OUT}")),
    "hard-link-out": tar_of(hard("shadow", "../../../../etc/shadow")),
    "hard-link-to-an-absolute-path": tar_of(hard("shadow", "/etc/shadow")),
    "hard-link-through-a-link": tar_of(link("out", "/etc"), hard("shadow", "out/shadow")),
    "hard-link-to-a-link": tar_of(link("out", "/etc/shadow"), hard("shadow", "out"), file("shadow", b"mine")),
    "hard-link-to-a-device": tar_of(entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3), hard("also", "null")),
    "hard-link-to-itself": tar_of(file("a"), hard("a", "a")),
    "hard-link-to-a-folder": tar_of(entry("d", tarfile.DIRTYPE), hard("e", "d")),
    "hard-link-to-nothing": tar_of(hard("a", "no-such")),
    "mode-through-a-link": tar_of(link("etc2", "/etc"), entry("etc2", tarfile.DIRTYPE, mode=0o777, uid=1000)),
}  # fmt: skip
#: Whiteouts and marks of overlayfs: I3.
WHITEOUTS: dict[str, bytes] = {
    "of-dot": tar_of(entry(".wh..")),
    "of-dots": tar_of(entry(".wh...")),
    "of-nothing": tar_of(entry(".wh.")),
    "of-dots-deeper": tar_of(entry("a/.wh...")),
    "below-a-whiteout": tar_of(entry(".wh.a/b")),
    "opaque": tar_of(entry("etc", tarfile.DIRTYPE, mode=0o755), entry("etc/.wh..wh..opq")),
    "opaque-through-a-link": tar_of(link("out", "/tmp"), entry("out/.wh..wh..opq")),
    "through-a-link": tar_of(link("out", "/etc"), entry("out/.wh.passwd")),
    "as-a-device": tar_of(entry("gone", tarfile.CHRTYPE, devmajor=0, devminor=0)),
    "redirect": tar_of(attributed("d", "trusted.overlay.redirect", "/../../etc")),
    "opaque-mark": tar_of(attributed("d", "trusted.overlay.opaque", "y")),
    "metacopy": tar_of(attributed("d", "trusted.overlay.metacopy", "")),
    "origin": tar_of(attributed("d", "trusted.overlay.origin", "x")),
    "user-redirect": tar_of(attributed("d", "user.overlay.redirect", "/../../etc")),
    "plink": tar_of(entry(".wh..wh.plnk", tarfile.DIRTYPE), file(".wh..wh.plnk/1.2")),
}
#: What has rights or is no file: I4.
NODES: dict[str, bytes] = {
    "disk": tar_of(entry("dev0", tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666)),
    "mem": tar_of(entry("mem", tarfile.CHRTYPE, devmajor=1, devminor=1, mode=0o666)),
    "fifo": tar_of(entry("fifo", tarfile.FIFOTYPE, mode=0o666)),
    "setuid": tar_of(file("su", b"#!/bin/sh\n", mode=0o6755)),
    "capability": tar_of(attributed("ping", "security.capability", "x" * 20, kind=tarfile.REGTYPE)),
    "ima": tar_of(attributed("ima", "security.ima", "x", kind=tarfile.REGTYPE)),
    "selinux": tar_of(attributed("label", "security.selinux", "system_u:object_r:shadow_t", kind=tarfile.REGTYPE)),
    "uid-65536": tar_of(entry("a", uid=65536)),
    "uid-of-another-range": tar_of(entry("a", uid=0x20010000, gid=0x20010000), form=tarfile.GNU_FORMAT),
    "uid-minus-one": tar_of(entry("a", uid=-1), form=tarfile.GNU_FORMAT),
    "uid-2-32": tar_of(entry("a", pax_headers={"uid": str(1 << 32)})),
    "size-8-exabytes": tar_of(entry("a", size=(1 << 63) - 1), form=tarfile.GNU_FORMAT),
    "size-negative": tar_of(entry("a", pax_headers={"size": "-512"})),
    "size-words": tar_of(entry("a", pax_headers={"size": "many"})),
    "mtime-1e300": tar_of(entry("a", pax_headers={"mtime": "1e300"})),
    "mtime-nan": tar_of(entry("a", pax_headers={"mtime": "nan"})),
    "xattr-of-64-kib": tar_of(attributed("a", "user.big", "x" * 65536, kind=tarfile.REGTYPE)),
    "xattrs-many": tar_of(entry("a", pax_headers={f"SCHILY.xattr.user.{number}": "x" for number in range(3000)})),
    "unknown-kind": tar_of(entry("a", b"Z")),
    "sparse": tar_of(entry("a", b"S")),
}  # fmt: skip
#: What grows: I5.
BOMBS: dict[str, bytes] = {
    "a-terabyte-promised": gzip.compress(tar_of(entry("a", size=1 << 40), form=tarfile.GNU_FORMAT)),
    "pax-head-of-a-gigabyte": tar_of(entry("a", tarfile.XHDTYPE, size=1 << 30), form=tarfile.GNU_FORMAT),
    "long-name-of-a-gigabyte": tar_of(entry("a", tarfile.GNUTYPE_LONGNAME, size=1 << 30), form=tarfile.GNU_FORMAT),
    "gzip-in-gzip": gzip.compress(gzip.compress(tar_of(file("a")))),
    "gzip-without-end": gzip.compress(tar_of(file("a")))[:-9],
    "zstd-window": bytes.fromhex("28b52ffd00f8"),
    "xz-of-nothing": b"\xfd7zXZ\0" + bytes(100),
    "folders-200-deep": tar_of(*(entry("/".join("d" * depth), tarfile.DIRTYPE) for depth in range(1, 260))),
}  # fmt: skip


_PIECE = 1 << 20


def repeated(head: bytes, piece: bytes, count: int) -> bytes:
    """Return gzip of `head`, many times the same piece, and the end of a tar; made in the time of one piece."""
    total, end = 0, bytes(1024)
    out = [bytes.fromhex("1f8b08000000000000ff")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    out.append(packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH))
    # After a full flush a piece is packed without a look back: the same bytes each time.
    out.append((packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)) * count)
    out.append(packer.compress(end) + packer.flush())
    code = zlib.crc32(head)
    for _ in range(count):
        code = zlib.crc32(piece, code)
    total = len(head) + len(piece) * count + len(end)
    return b"".join([*out, struct.pack("<II", zlib.crc32(end, code), total & 0xFFFFFFFF)])


def growing() -> dict[str, bytes]:
    """Return bombs that are what they promise: little to send, a gigabyte or hundreds of thousands of files to unpack."""
    size = 1024 * _PIECE
    zeros = tar_of(entry("zeros", size=size), form=tarfile.GNU_FORMAT)[:512]
    names = [tar_of(file(f"many/{number:04}", b""))[:512] for number in range(2000)]
    folders = [tar_of(entry(f"deep{number:04}", tarfile.DIRTYPE, mode=0o755))[:512] for number in range(2000)]
    gigabyte = repeated(zeros, bytes(_PIECE), 1024)
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    fast = [packer.compress(zeros), *(packer.compress(bytes(_PIECE)) for _ in range(1024)), packer.flush()]
    links = [tar_of(link(f"link{number:04}", "x" * 90))[:512] for number in range(2000)]
    return {
        "gigabyte-of-zeros": gigabyte,
        "gigabyte-of-zeros-by-zstd": b"".join(fast),
        "gigabyte-in-a-gzip-in-a-gzip": gzip.compress(gigabyte),
        "files": repeated(b"", b"".join(names), 300),
        "folders": repeated(b"", b"".join(folders), 300),
        "links": repeated(b"", b"".join(links), 300),
        "nothing-but-ends": repeated(b"", bytes(_PIECE), 1024),
    }


def with_busybox(*fills: Fill, without: str = "") -> bytes:
    """Return an image that runs, with more in it, and something left out."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(busybox_tar())) as old,
        tarfile.open(fileobj=buffer, mode="w") as new,
    ):
        for member in old:
            if member.name != without:
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
        for fill in fills:
            fill(new)
    return buffer.getvalue()

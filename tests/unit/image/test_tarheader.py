# SPDX-License-Identifier: Apache-2.0
"""The tar format: what we write, we and others read; what is malformed is refused."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.image.decompress import decompressed
from insula.image.tarheader import Entry, Kind, TarReader, Xattr, encode
from insula.model.errors import InvalidImage

names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and name.strip(b"/"))
entries = st.builds(
    Entry,
    path=names,
    kind=st.sampled_from([Kind.SYMLINK, Kind.DIRECTORY, Kind.FIFO, Kind.FILE]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 65535),
    gid=st.integers(0, 65535),
    mtime_ns=st.integers(-(1 << 61), 1 << 61),
    link=st.binary(max_size=300).filter(lambda link: b"\0" not in link),
    xattrs=st.lists(
        st.builds(Xattr, name=st.text("abc.", min_size=1), value=st.binary(max_size=50)),
        max_size=3,
        unique_by=lambda xattr: xattr.name,
    ).map(lambda each: tuple(sorted(each, key=lambda xattr: xattr.name))),
)


@given(st.lists(entries, max_size=5))
def test_what_is_encoded_is_read_back(written: list[Entry]) -> None:
    archive = b"".join(map(encode, written)) + bytes(1024)
    assert list(TarReader(io.BytesIO(archive))) == written


@given(entries)
def test_pythons_tarfile_reads_what_is_encoded(entry: Entry) -> None:
    with tarfile.open(fileobj=io.BytesIO(encode(entry) + bytes(1024)), errors="surrogateescape") as archive:
        (member,) = archive.getmembers()
    assert member.name.encode("utf-8", "surrogateescape").rstrip(b"/") == entry.path.rstrip(b"/")
    assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)


@given(st.binary(max_size=2000))
def test_random_bytes_are_refused_with_our_error(data: bytes) -> None:
    try:
        for _ in TarReader(decompressed(io.BytesIO(data))):
            pass
    except InvalidImage:
        pass


@given(st.integers(0, 1500), st.integers(0, 255))
def test_a_damaged_archive_is_read_or_refused(position: int, value: int) -> None:
    archive = bytearray(encode(Entry(path=b"x" * 150, kind=Kind.FILE, mtime_ns=5)) + bytes(1024))
    archive[position % len(archive)] = value
    try:
        list(TarReader(io.BytesIO(bytes(archive))))
    except InvalidImage:
        pass


def test_an_archive_without_its_end_is_truncated() -> None:
    with pytest.raises(InvalidImage, match="truncated after `a`"):
        list(TarReader(io.BytesIO(encode(Entry(path=b"a", kind=Kind.FILE)))))


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_archive_that_is_cut_is_refused(mode: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a"))
    whole = buffer.getvalue()
    assert [entry.path for entry in TarReader(decompressed(io.BytesIO(whole)))] == [b"a"]
    with pytest.raises(InvalidImage):
        list(TarReader(decompressed(io.BytesIO(whole[: len(whole) // 2]))))


def test_zstd_is_recognised() -> None:
    import zstandard

    archive = encode(Entry(path=b"a", kind=Kind.FILE)) + bytes(1024)
    packed = zstandard.ZstdCompressor().compress(archive)
    assert [entry.path for entry in TarReader(decompressed(io.BytesIO(packed)))] == [b"a"]
    with pytest.raises(InvalidImage):
        list(TarReader(decompressed(io.BytesIO(packed[:-5]))))


def test_gnu_formats_are_read() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("d/" * 80 + "long")
        info.uid, info.mtime = 1 << 22, -5
        archive.addfile(info)
    (entry,) = TarReader(io.BytesIO(buffer.getvalue()))
    assert (entry.path, entry.uid, entry.mtime_ns) == (b"d/" * 80 + b"long", 1 << 22, -5 * 10**9)

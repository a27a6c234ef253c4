# SPDX-License-Identifier: Apache-2.0
"""Layers: unpacked whole or not at all, never outside their folder, the same digest for the same content."""

import io
import os
import random
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.image.decompress import IteratorSource
from insula.image.gc import collect
from insula.image.layers import Layers
from insula.image.pack import pack_tree
from insula.image.tarball import Form, Limits, unpack_tree
from insula.model.errors import InvalidImage
from insula.model.record import ImageRecord


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path / "layers")


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", data: bytes = b"", **more: int
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


DIRECTORY, SYMLINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "absolute": [member("/etc/x")],
    "dots": [member("a/../../x")],
    "through a link": [member("l", SYMLINK, link="/tmp"), member("l/x")],
    "through a relative link": [member("l", SYMLINK, link="../.."), member("l/x")],
    "below a file": [member("f"), member("f/x")],
    "hard link out": [member("h", HARD, link="../../x")],
    "hard link absolute": [member("h", HARD, link="/etc/passwd")],
    "hard link through a link": [member("l", SYMLINK, link="/etc"), member("h", HARD, link="l/passwd")],
    "hard link to nothing": [member("h", HARD, link="nothing")],
    "uid": [member("a", uid=65536)],
    "gid": [member("a", gid=1 << 31)],
    "file over directory": [member("a", DIRECTORY), member("a")],
    "long": [member("a" * 300)],
    "deep": [member("a/" * 300)],
    "empty whiteout": [member(".wh.")],
    "whiteout of dots": [member(".wh...")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(layers: Layers, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidImage):
        layers.unpack(archive(*HOSTILE[name]))
    assert list((tmp_path / "layers/tmp").iterdir()) == []
    assert layers.list() == []


def test_limits_hold(layers: Layers) -> None:
    with pytest.raises(InvalidImage, match="more than 2 entries"):
        layers.unpack(archive(member("a"), member("b"), member("c")), limits=Limits(entries=2))
    with pytest.raises(InvalidImage, match="more than 10 bytes"):
        layers.unpack(archive(member("a", data=b"x" * 11)), limits=Limits(size_bytes=10))


def test_devices_are_skipped(layers: Layers) -> None:
    record = layers.unpack(archive(member("mem", tarfile.CHRTYPE, devmajor=1, devminor=1), member("a")))
    assert os.listdir(layers.folder(record.digest)) == ["a"]


def test_a_rich_layer_comes_back_as_it_was(layers: Layers, tmp_path: Path) -> None:
    setuid, linked = (
        member("bin/su", data=b"x", mode=0o4755, uid=7, gid=9, mtime=5),
        member("bin/sudo", HARD, link="bin/su"),
    )
    link = member("etc/l", SYMLINK, link="/nowhere", uid=3, mtime=9)
    fifo, newline = member("pipe", tarfile.FIFOTYPE, mode=0o600), member("a\nb", data=b"z" * 3_000_000)
    first = layers.unpack(
        archive(member("bin", DIRECTORY, mode=0o711, mtime=77), setuid, linked, link, fifo, newline)
    )
    folder = layers.folder(first.digest)
    status = (folder / "bin/su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_nlink) == (0o4755, 7, 9, 2)
    assert (folder / "bin").stat().st_mtime == 77
    other = Layers(tmp_path / "other")
    assert other.unpack(IteratorSource(layers.pack(first.digest)), expected=first.digest) == first
    assert other.folder(first.digest).joinpath("etc/l").lstat().st_mtime == 9


def test_the_digest_does_not_depend_on_the_order_of_the_archive(layers: Layers) -> None:
    members = [member(f"d{n}/f{m}", data=b"x" * m, mtime=n) for n in range(4) for m in range(4)]
    folders = [member(f"d{n}", DIRECTORY, mtime=1, mode=0o755) for n in range(4)]
    shuffled = members[:]
    random.Random(5).shuffle(shuffled)
    first = layers.unpack(archive(*folders, *members))
    assert layers.unpack(archive(*shuffled, *folders)) == first


def test_another_content_than_expected_is_refused(layers: Layers) -> None:
    with pytest.raises(InvalidImage, match="cannot accept layer"):
        layers.unpack(archive(member("a")), expected="sha256:" + "0" * 64)
    assert layers.list() == []


def test_whiteouts_become_overlayfs_own_and_back(layers: Layers) -> None:
    record = layers.unpack(archive(member("d", DIRECTORY), member("d/.wh..wh..opq"), member(".wh.gone")))
    folder = layers.folder(record.digest)
    assert stat.S_ISCHR((folder / "gone").lstat().st_mode)
    assert os.getxattr(folder / "d", "trusted.overlay.opaque") == b"y"
    with tarfile.open(fileobj=io.BytesIO(b"".join(layers.pack(record.digest)))) as packed:
        names = packed.getnames()
    assert {".wh.gone", "d/.wh..wh..opq"} <= set(names)


def test_a_writable_layer_travels_with_its_marks(tmp_path: Path) -> None:
    upper, copy = tmp_path / "upper", tmp_path / "copy"
    (upper / "d").mkdir(parents=True)
    copy.mkdir()
    os.setxattr(upper / "d", "trusted.overlay.redirect", b"old")
    os.setxattr(upper / "d", "trusted.overlay.origin", b"host's own")
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    os.link(upper / "gone", upper / "gone-too")
    (upper / ".wh.file").write_bytes(b"a file of the user's")
    with (upper / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 29)
        sparse.write(b"middle")
    os.symlink("a", upper / "l1")
    os.link(upper / "l1", upper / "l2", follow_symlinks=False)
    with opened(upper) as source, opened(copy) as target:
        unpack_tree(IteratorSource(pack_tree(source, form=Form.UPPER)), target, form=Form.UPPER)
    assert os.listxattr(copy / "d") == ["trusted.overlay.redirect"]
    assert stat.S_ISCHR((copy / "gone").lstat().st_mode) and stat.S_ISCHR((copy / "gone-too").lstat().st_mode)
    assert (copy / ".wh.file").read_bytes() == b"a file of the user's"
    assert (copy / "sparse").stat().st_size == 1 << 30 and (copy / "sparse").stat().st_blocks < 10_000
    assert (copy / "l1").lstat().st_ino == (copy / "l2").lstat().st_ino


class opened:  # noqa: N801
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def test_collection_removes_only_the_unused(layers: Layers) -> None:
    used, unused = layers.unpack(archive(member("a"))), layers.unpack(archive(member("b")))
    assert collect(layers, images=[ImageRecord(id="x", layers=(used,))], containers=[]) == [unused]
    assert layers.list() == [used]


PARTS = st.sampled_from(["a", "b", "..", ".", "", "l", ".wh.a", ".wh..wh..opq", "etc", "\n"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
MEMBERS = st.builds(
    lambda name, kind, link, data: member(
        name or "x", kind, link=link, data=data if kind == tarfile.REGTYPE else b""
    ),
    PATHS,
    st.sampled_from([tarfile.REGTYPE, DIRECTORY, SYMLINK, HARD, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
    st.one_of(PATHS, st.just("/tmp"), st.just("../../canary")),
    st.binary(max_size=5),
)


@settings(max_examples=150)
@given(st.lists(MEMBERS, max_size=8))
def test_no_archive_touches_anything_outside_its_folder(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        outside, root = Path(name, "outside"), Path(name, "outside/x/y/root")
        root.mkdir(parents=True)
        (outside / "canary").write_bytes(b"")
        (outside / "x/canary").write_bytes(b"")
        watched = [Path(outside / "canary"), outside / "x/canary"]
        before = (
            [path.stat() for path in watched],
            sorted(os.listdir(outside / "x/y")),
            os.listdir(outside / "x"),
        )
        with opened(root) as fd:
            try:
                unpack_tree(archive(*members), fd)
            except InvalidImage:
                pass
            else:
                packed = b"".join(pack_tree(fd))
                copy = Path(name, "copy")
                copy.mkdir()
                with opened(copy) as other:
                    unpack_tree(io.BytesIO(packed), other)
                    again = b"".join(pack_tree(other))
                assert again == packed
        assert before == (
            [path.stat() for path in watched],
            sorted(os.listdir(outside / "x/y")),
            os.listdir(outside / "x"),
        )

# SPDX-License-Identifier: Apache-2.0
"""cp: docker's rules, packing, and unpacking what a hostile container sends."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from insula.cli import archive
from insula.cli.commands import cp
from insula.cli.parser import UsageError
from insula.model.errors import InvalidImage, PathEscapes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web:/etc", ("web", "/etc")),
        ("web:", ("web", "/")),
        ("./a:b", ("", "./a:b")),
        ("-", ("", "-")),
        ("a", ("", "a")),
    ],
)
def test_a_container_is_before_the_colon(text: str, expected: tuple[str, str]) -> None:
    assert cp.split(text) == expected


@pytest.mark.parametrize(
    ("source", "is_folder", "target", "kind", "expected"),
    [
        ("/a/f", False, "/d", "folder", ("/d", "f")),
        ("/a/f", False, "/d/g", "file", ("/d", "g")),
        ("/a/f", False, "/d/new", "", ("/d", "new")),
        ("/a/dir", True, "/d", "folder", ("/d", "dir")),
        ("/a/dir/", True, "/d/", "folder", ("/d", "dir")),
        ("/a/dir/.", True, "/d", "folder", ("/d", ".")),
        ("/a/dir", True, "/d/new", "", ("/d", "new")),
        ("f", False, "new", "", (".", "new")),
    ],
)
def test_where_a_copy_lands(
    source: str, is_folder: bool, target: str, kind: str, expected: tuple[str, str]
) -> None:
    assert cp.plan(source, target, is_source_folder=is_folder, target_kind=kind) == expected


def test_what_docker_refuses_is_refused() -> None:
    with pytest.raises(UsageError, match="that is a file"):
        cp.plan("/dir", "/f", is_source_folder=True, target_kind="file")
    with pytest.raises(UsageError, match="no such folder"):
        cp.plan("/f", "/none/", is_source_folder=False, target_kind="")


def test_a_tree_survives_packing_and_unpacking(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "dst"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    (source / "sub" / "f").write_bytes(os.urandom(1_500_000))
    (source / "x").write_text("run")
    (source / "x").chmod(0o755)
    os.link(source / "x", source / "y")
    (source / "link").symlink_to("/etc/passwd")
    parts = archive.pack(str(source), "src", follow_links=False, keep_owner=False)
    assert archive.unpack(parts, str(target), name="new", keep_owner=False) == 0
    assert (target / "new/sub/f").read_bytes() == (source / "sub/f").read_bytes()
    assert (target / "new/x").stat().st_mode & 0o777 == 0o755
    assert (target / "new/y").read_text() == "run"
    assert os.readlink(target / "new/link") == "/etc/passwd"


def tar(*members: tuple[str, bytes, str]) -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, more in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o4777
            info.linkname = more if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(more) if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(more.encode()))
    return [out.getvalue()]


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../out"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PathEscapes):
        archive.unpack(tar((name, tarfile.REGTYPE, "x")), str(tmp_path), name=None, keep_owner=False)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    (folder / "old").symlink_to(outside)
    sent = tar(("l", tarfile.SYMTYPE, str(outside)), ("l/f", tarfile.REGTYPE, "x"))
    with pytest.raises((PathEscapes, OSError)):
        archive.unpack(sent, str(folder), name=None, keep_owner=False)
        archive.unpack(tar(("l/f", tarfile.REGTYPE, "x")), str(folder), name=None, keep_owner=False)
    with pytest.raises(PathEscapes):
        archive.unpack(tar(("old/f", tarfile.REGTYPE, "x")), str(folder), name=None, keep_owner=False)
    assert list(outside.iterdir()) == []


def test_devices_are_skipped_and_set_id_bits_dropped(tmp_path: Path) -> None:
    sent = tar(("dev", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, ""), ("f", tarfile.REGTYPE, "x"))
    assert archive.unpack(sent, str(tmp_path), name=None, keep_owner=False) == 2
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o777


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match="cannot unpack"):
        archive.unpack([b"not a tar" * 100], str(tmp_path), name=None, keep_owner=False)

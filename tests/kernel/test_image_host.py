# SPDX-License-Identifier: Apache-2.0
"""The `host` image, mounted as a container gets it: no secret of this host shows."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.image.host import CHECK_INTERVAL_S, HostView
from insula.kernel import idmap, libc, mount

BASE = 1_000_000
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


def overlay_of(view: HostView, writable: Path) -> int:
    """Return the detached root of a container with the ids from BASE on."""
    ids = [idmap.Range(0, BASE, 65536)]
    held = [idmap.user_namespace(uids=ids, gids=ids)]

    def keep(fd: int) -> int:
        held.append(fd)
        return fd

    try:
        lower = [
            keep(idmap.idmapped_clone(keep(os.open(path, _DIRECTORY)), held[0]))
            for path in reversed(view.lower_folders())
        ]
        place = keep(idmap.idmapped_clone(keep(os.open(writable, _DIRECTORY)), held[0]))
        upper, work = (keep(os.open(name, _DIRECTORY, dir_fd=place)) for name in ("upper", "work"))
        return mount.overlay(lower_fds=lower, upper_fd=upper, work_fd=work, source="test", owner=(BASE, BASE))
    finally:
        for fd in held:
            os.close(fd)


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/var/lib", prefix="insula-test-"))
    view = HostView(folder / "host-view")
    for name in ("c/upper", "c/work"):
        (folder / name).mkdir(parents=True)
    try:
        fd = overlay_of(view, folder / "c")
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        view.close()
        shutil.rmtree(folder)


def test_no_secret_shows(root: Path) -> None:
    for path in ("etc/shadow", "etc/gshadow", "etc/sudoers", "etc/ssl/private", "boot", "work", ".dockerenv"):
        assert not os.path.lexists(root / path), path
    for path in ("root", "home", "tmp", "run", "srv", "mnt", "media", "dev", "proc", "sys"):
        assert os.listdir(root / path) == [], path
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not any(name.endswith(("_key", ".key")) for _, _, names in os.walk(root / "etc") for name in names)
    assert not [
        name for _, _, names in os.walk(root / "var") for name in names if name not in ("run", "lock")
    ]


def test_nothing_shows_that_not_everybody_may_read(root: Path) -> None:
    shown = []
    for top in ("etc", "opt", "usr/lib", "usr/share", "usr/local"):
        for place, folders, files in os.walk(root / top):
            for name in [*folders, *files]:
                mode = os.lstat(os.path.join(place, name)).st_mode
                if not stat.S_ISLNK(mode) and not mode & (stat.S_IROTH | stat.S_IXOTH):
                    shown.append(os.path.join(place, name))
    assert shown == []


def test_programs_are_the_hosts_and_can_be_written_over(root: Path) -> None:
    python = os.path.realpath("/usr/bin/env")
    assert (root / python[1:]).read_bytes() == Path(python).read_bytes()
    assert (root / "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()
    su = os.stat("/usr/bin/su").st_mode
    assert (root / "usr/bin/su").stat().st_mode == su
    assert (root / "usr/bin/su").stat().st_uid == BASE
    before = os.listdir("/usr/bin")
    (root / "usr/bin/env").unlink()
    uid, gid = (
        libc.setfsuid(BASE),
        libc.setfsgid(BASE),
    )  # as the container's root: this host's has no id there
    try:
        (root / "etc/new").write_bytes(b"mine")
    finally:
        libc.setfsuid(uid)
        libc.setfsgid(gid)
    assert (root / "etc/new").stat().st_uid == BASE
    assert os.listdir("/usr/bin") == before and not Path("/etc/new").exists()


def small_host(folder: Path) -> Path:
    for name in ("etc/ssl/private", "usr/lib", "opt/app", "var/lib/app", "root", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "opt/app/key").write_bytes(b"secret")
    (folder / "opt/app/key").chmod(0o600)
    (folder / "etc/hosts").write_bytes(b"")
    (folder / "usr/lib/libc.so").write_bytes(b"1")
    return folder


def test_the_mask_follows_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.image.host.CHECK_INTERVAL_S", 0.0)
    assert CHECK_INTERVAL_S > 0
    host = small_host(tmp_path / "host")
    view = HostView(tmp_path / "view", root=host)
    try:
        first, mask = view.identity(), view.lower_folders()[1]
        assert stat.S_ISCHR((mask / "opt/app/key").lstat().st_mode)
        assert stat.S_ISCHR((mask / "data").lstat().st_mode)
        assert os.listdir(mask / "var/lib/app") == []
        assert view.lower_folders()[1] == mask
        (host / "opt/app/other").write_bytes(b"secret")
        (host / "opt/app/other").chmod(0o600)
        assert stat.S_ISCHR((view.lower_folders()[1] / "opt/app/other").lstat().st_mode)
        (host / "opt/app/public").write_bytes(b"2")
        assert view.identity() != first
    finally:
        view.close()
    assert os.listdir(tmp_path / "view") == []


def test_what_a_killed_daemon_left_is_taken_away(tmp_path: Path) -> None:
    host = small_host(tmp_path / "host")
    HostView(tmp_path / "view", root=host).refresh()
    after = HostView(tmp_path / "view", root=host)
    after.refresh()
    assert len(os.listdir(tmp_path / "view")) == 1
    after.close()
    assert os.listdir(tmp_path / "view") == []

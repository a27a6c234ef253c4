# SPDX-License-Identifier: Apache-2.0
"""Opening with a user's own rights: what that user cannot open is not opened, whatever root could."""

import contextlib
import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel.as_user import Ids, open_below

UID, OTHER, GROUP = 64811, 64812, 64900
ALICE = Ids(UID, UID, [])
DEADLINE_S = 30.0


@pytest.fixture
def home() -> Iterator[Path]:
    """Alice's home, beside another's."""
    with tempfile.TemporaryDirectory(prefix="insula-test-home-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        for name, uid in (("alice", UID), ("bob", OTHER)):
            folder = Path(made, name)
            folder.mkdir(mode=0o700)
            (folder / "file").write_text(name)
            os.chown(folder, uid, uid)
            os.chown(folder / "file", uid, uid)
        yield Path(made, "alice")


def names(ids: Ids, home: Path, path: str, *, writable: bool = False) -> str:
    """Return what was opened, or the error's name."""
    try:
        descriptor = open_below(ids, str(home), path=path, writable=writable)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(home)) or "."
    finally:
        os.close(descriptor)


def test_own_things_are_opened_and_root_is_root_again_afterwards(home: Path) -> None:
    assert names(ALICE, home, "file", writable=True) == "/file"
    assert names(ALICE, home, ".", writable=True) == "."
    assert (home.parent / "bob/file").read_text() == "bob"
    assert "CapEff:\t0000000000000000" not in Path("/proc/self/status").read_text()
    assert os.geteuid() == 0


@pytest.mark.parametrize(
    "link", ["/etc", "../bob", "../../../etc/passwd", "/proc/self/root", "deep/../../bob"]
)
def test_no_link_leads_out(home: Path, link: str) -> None:
    (home / "deep").mkdir()
    os.chown(home / "deep", UID, UID)
    (home / "link").symlink_to(link)
    assert names(ALICE, home, "link") in ("EXDEV", "ELOOP")
    assert names(ALICE, home, "link/x") in ("EXDEV", "ELOOP")


def test_a_link_that_stays_inside_is_followed(home: Path) -> None:
    (home / "link").symlink_to("file")
    assert names(ALICE, home, "link") == "/file"


@pytest.mark.parametrize("path", ["..", "../bob", "../bob/file", "/etc/passwd", "x/../../bob"])
def test_no_dots_lead_out(home: Path, path: str) -> None:
    assert names(ALICE, home, path) in ("EXDEV", "ENOENT")


def test_what_root_may_and_the_user_not_is_not_opened(home: Path) -> None:
    for name, mode, owner in (("secret", 0o600, 0), ("folder", 0o700, 0), ("mine-but-closed", 0o000, UID)):
        path = home / name
        path.mkdir() if name == "folder" else path.write_text("x")
        os.chown(path, owner, owner)
        path.chmod(mode)
        assert names(ALICE, home, name) == "EACCES", name


def test_only_to_be_read_is_not_to_be_written(home: Path) -> None:
    (home / "shown").write_text("x")
    assert names(ALICE, home, "shown") == "/shown"
    assert names(ALICE, home, "shown", writable=True) == "EACCES"


def test_a_folder_that_cannot_be_listed_or_entered_is_not_opened(home: Path) -> None:
    for mode in (0o500, 0o100, 0o400):
        folder = home / f"m{mode:o}"
        folder.mkdir()
        os.chown(folder, UID, UID)
        folder.chmod(mode)
    assert names(ALICE, home, "m500") == "/m500"
    assert names(ALICE, home, "m100") == "EACCES"
    assert names(ALICE, home, "m400") == "EACCES"


def test_groups_are_those_that_were_said_and_not_roots(home: Path) -> None:
    path = home / "shared"
    path.write_text("x")
    os.chown(path, 0, GROUP)
    path.chmod(0o640)
    assert names(ALICE, home, "shared") == "EACCES"
    assert names(Ids(UID, UID, [GROUP]), home, "shared") == "/shared"
    os.chown(path, 0, 0)
    assert names(Ids(UID, UID, [GROUP]), home, "shared") == "EACCES", "root's own group is not taken along"


def test_another_user_does_not_get_through_the_ceiling(home: Path) -> None:
    assert names(Ids(OTHER, OTHER, []), home, "file") == "EACCES"


def test_only_folders_and_files_are_opened_and_nothing_waits_for_a_writer(home: Path) -> None:
    os.mkfifo(home / "fifo", 0o666)
    (home / "fifo").chmod(0o666)
    os.mknod(home / "null", 0o20666, os.makedev(1, 3))
    (home / "null").chmod(0o666)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(home / "socket"))
        (home / "socket").chmod(0o666)
        for name in ("fifo", "null", "socket"):
            assert names(ALICE, home, name) == "EINVAL", name


def test_a_swapped_path_gives_what_is_below_or_nothing(home: Path) -> None:
    """A folder is exchanged for a link out, again and again, while it is opened."""
    (home / "real").mkdir()
    os.chown(home / "real", UID, UID)
    (home / "real/file").write_text("own")
    os.chown(home / "real/file", UID, UID)
    ended = threading.Event()

    def swap() -> None:
        place, aside = home / "place", home / "aside"
        while not ended.is_set():
            (home / "real").rename(place)
            place.rename(home / "real")
            aside.symlink_to("/etc")
            aside.rename(place)
            place.unlink()

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = {names(ALICE, home, "place/file") for _ in range(500)} | {
            names(ALICE, home, "place/passwd") for _ in range(500)
        }
    finally:
        ended.set()
        swapper.join(DEADLINE_S)
    assert seen <= {"/place/file", "/real/file", "ENOENT", "EXDEV", "ENOTDIR", "EAGAIN"}, seen


def test_many_threads_at_once_do_not_mix_their_ids(home: Path) -> None:
    bob = home.parent / "bob"
    wrong: list[str] = []

    def work(ids: Ids, own: Path, other: Path) -> None:
        for _ in range(50):
            if names(ids, own, "file") != "/file" or names(ids, other, "file") != "EACCES":
                wrong.append(str(ids))

    threads = [
        threading.Thread(target=work, args=each)
        for each in ((ALICE, home, bob), (Ids(OTHER, OTHER, []), bob, home)) * 4
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE_S)
    assert not wrong

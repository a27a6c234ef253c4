# SPDX-License-Identifier: Apache-2.0
"""Folders that change while they travel: after some rounds both sides are the same, in every detail."""

import contextlib
import mmap
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.image.pack import pack_tree
from insula.image.tarball import MAX_DEPTH, Form
from insula.kernel import libc
from insula.migrate.edits import Attributes, Link, Make, Move, Open, Record, Remove, Write, encode
from insula.migrate.fileapply import FileTarget
from insula.migrate.files import FileSource
from insula.migrate.wire import Wire
from insula.model.errors import InsulaError, InvalidImage, MigrationFailed, ProtocolError
from insula.model.migration import FileRound

MNT_DETACH = 2


@pytest.fixture
def place() -> Iterator[Path]:
    # Not on a tmpfs: it must have what ext4 has.
    folder = Path(tempfile.mkdtemp(prefix="insula-test-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


class Rounds:
    """Two folders and a wire between them."""

    def __init__(self, source: Path, target: Path, *, seen: Path | None) -> None:
        near, far = socket.socketpair()
        self._out, self._in = Wire(near), Wire(far)
        self.source, self.target = source, target
        opened = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in (source, target, seen or source)]
        self._files = FileSource(opened[0], name="", mount_root=opened[2] if seen else None)
        self._taker = FileTarget(opened[1])
        for each in opened:
            os.close(each)

    def __enter__(self) -> "Rounds":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        self._taker.close()
        self._out.close()
        self._in.close()

    def go(self) -> int:
        """Do one round; returns its bytes."""
        failures: list[InsulaError] = []

        def take() -> None:
            try:
                self._taker.receive(self._in.expect(FileRound), self._in)
            except InsulaError as error:
                failures.append(error)
                self._in.close()

        thread = threading.Thread(target=take)
        thread.start()
        sent = 0
        try:
            sent = self._files.send_round(self._out)
        except MigrationFailed:
            if not failures:  # else it is the other side's end, which had its reason
                self._out.close()
                thread.join(timeout=30)
                raise
        thread.join(timeout=30)
        if failures:
            raise failures[0]
        return sent

    def estimate(self) -> int:
        return self._files.dirty_estimate()


def described(root: Path) -> dict[str, object]:
    """Return all that is to be kept of a folder, by name."""
    found: dict[str, object] = {}
    groups: dict[int, list[str]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(root))
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            content: object = (status.st_size, path.read_bytes())
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        else:
            content = status.st_rdev
        xattrs = {}
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            names = [each for each in os.listxattr(path) if not each.startswith("security.sel")]
            xattrs = {each: os.getxattr(path, each) for each in names}
        whiteout = kind == stat.S_IFCHR
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs)
        if kind != stat.S_IFDIR and not whiteout:
            groups.setdefault(status.st_ino, []).append(name)
    found["hard links"] = sorted(names for names in groups.values() if len(names) > 1)
    return found


NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/e/a", "d/e", "d", "f", "f/a"])
EDITS = (
    "file big sparse grow cut poke link rename fold remove symlink fifo sock whiteout opaque mode own xattr time"
).split()
STEPS = st.lists(st.tuples(st.sampled_from(EDITS), NAMES, NAMES, st.integers(0, 255)), max_size=8)


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def edit(root: Path, kind: str, *, name: str, other: str, number: int) -> None:
    path, second = root / name, root / other
    node = {"fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK, "whiteout": stat.S_IFCHR}
    if kind in ("file", "big", "sparse", "fold", "symlink", *node):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (kind == "fold" and path.is_dir()):
            clear(path)
    match kind:
        case "file":
            path.write_bytes(bytes([number]) * number)
        case "big":
            path.write_bytes(os.urandom(100_000 + number))
        case "sparse":
            with path.open("wb") as file:
                file.seek(number * 10_000)
                file.write(b"end")
        case "grow":
            os.truncate(path, path.stat().st_size + number * 1000)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "poke":
            with path.open("r+b") as file:
                file.seek(number * 400)
                file.write(b"poked")
        case "link":
            os.link(path, second, follow_symlinks=False)
        case "rename":
            path.rename(second)
        case "fold":
            path.mkdir(exist_ok=True)
        case "remove":
            clear(path)
        case "symlink":
            path.symlink_to(other)
        case "fifo" | "sock" | "whiteout":
            os.mknod(path, node[kind] | 0o600, 0)
        case "opaque":
            if path.is_dir():
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        case "mode":
            path.chmod(number)
        case "own":
            os.lchown(path, number, number + 1)
        case "xattr":
            if number % 2:
                os.setxattr(path, "user.x", bytes([number]), follow_symlinks=False)
            else:
                os.removexattr(path, "user.x", follow_symlinks=False)
        case _:
            os.utime(path, ns=(number, number), follow_symlinks=False)


@pytest.mark.parametrize("is_watched", [False, True])
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(rounds=st.lists(STEPS, min_size=1, max_size=4))
def test_after_any_edits_both_sides_are_the_same(
    rounds: list[list[tuple[str, str, str, int]]], *, is_watched: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="insula-test-", dir="/var/tmp") as name:
        source, target = Path(name) / "s", Path(name) / "t"
        source.mkdir()
        target.mkdir()
        with Rounds(source, target, seen=source if is_watched else None) as travel:
            travel.go()
            for steps in rounds:
                for kind, first, second, number in steps:
                    with contextlib.suppress(OSError, shutil.Error):  # not every edit is possible
                        edit(source, kind, name=first, other=second, number=number)
                travel.go()
                assert described(target) == described(source)


@contextlib.contextmanager
def overlay(place: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Yield the upper folder, the mount, and an empty target."""
    for name in ("lower/etc/deep", "upper/srv", "work", "seen", "target"):
        (place / name).mkdir(parents=True)
    (place / "lower/etc/deep/file").write_text("of the image")
    words = ",".join(f"{name}dir={place / name}" for name in ("lower", "upper", "work"))
    libc.mount(b"overlay", os.fsencode(place / "seen"), b"overlay", 0, words.encode())
    try:
        yield place / "upper", place / "seen", place / "target"
    finally:
        libc.umount2(os.fsencode(place / "seen"), MNT_DETACH)


def same(first: Path, second: Path) -> bool:
    """As `described`, without what overlayfs notes for itself."""

    def plain(root: Path) -> dict[str, object]:
        found = described(root)
        for name, each in found.items():
            if isinstance(each, tuple):
                xattrs = {key: value for key, value in each[5].items() if key in KEPT}
                found[name] = (*each[:5], xattrs)
        return found

    return plain(first) == plain(second)


KEPT = ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.x")


def through_overlay(seen: Path) -> list[Callable[[], object]]:
    return [
        lambda: (seen / "srv/new").write_text("new"),
        lambda: (seen / "srv/new").write_text("other"),
        lambda: (seen / "etc/deep/file").write_text("copied up"),
        lambda: (seen / "etc/deep/file").unlink(),
        lambda: shutil.rmtree(seen / "etc/deep"),
        lambda: (seen / "etc/deep").mkdir(),
        lambda: (seen / "srv/new").chmod(0o600),
        lambda: os.setxattr(seen / "srv/new", "user.x", b"1"),
        lambda: os.link(seen / "srv/new", seen / "srv/second"),
        lambda: (seen / "srv/second").write_text("through the other name"),
        lambda: (seen / "srv/fold/in").mkdir(parents=True),
        lambda: (seen / "srv/fold/in/file").write_text("x"),
        lambda: (seen / "srv/fold").rename(seen / "srv/moved"),
        lambda: (seen / "srv/moved/in/file").write_text("y"),
        lambda: (seen / "srv/new").unlink(),
    ]


def test_what_a_container_does_is_noticed_through_its_overlay(place: Path) -> None:
    with overlay(place) as (upper, seen, target), Rounds(upper, target, seen=seen) as travel:
        travel.go()
        for number, act in enumerate(through_overlay(seen)):
            act()
            travel.go()
            assert same(target, upper), f"after act {number}"


def test_stores_through_a_mapping_are_noticed(place: Path) -> None:
    with overlay(place) as (upper, seen, target), Rounds(upper, target, seen=seen) as travel:
        (seen / "srv/mapped").write_bytes(bytes(1 << 20))
        with (seen / "srv/mapped").open("r+b") as file:
            view = mmap.mmap(file.fileno(), 1 << 20)
        travel.go()
        for number in range(1, 4):
            view[number * 5000] = number
            travel.go()
            assert (target / "srv/mapped").read_bytes() == view[:]
        view.close()


def test_a_large_file_costs_what_changed_in_it(place: Path) -> None:
    with overlay(place) as (upper, seen, target), Rounds(upper, target, seen=seen) as travel:
        (seen / "srv/data").write_bytes(os.urandom(16 << 20))
        travel.go()
        with (seen / "srv/data").open("r+b") as file:
            for block in range(0, 4096, 16):
                os.pwrite(file.fileno(), os.urandom(4096), block * 4096)
        changed = 256 * 4096
        assert travel.go() <= 1.1 * changed
        assert same(target, upper)
        (seen / "srv/data").rename(seen / "srv/renamed")
        assert travel.go() < 4096
        assert same(target, upper)
        with (seen / "srv/renamed").open("r+b") as file:
            os.truncate(file.fileno(), 5 << 20)
            os.pwrite(file.fileno(), b"far", 1 << 30)
        assert travel.go() < 16384
        found, wanted = (target / "srv/renamed").stat(), (upper / "srv/renamed").stat()
        assert (found.st_size, found.st_blocks <= wanted.st_blocks + 64) == (wanted.st_size, True)


def test_a_quiet_folder_costs_next_to_nothing(place: Path) -> None:
    with overlay(place) as (upper, seen, target), Rounds(upper, target, seen=seen) as travel:
        for number in range(500):
            (seen / f"srv/{number}").write_text("x" * 100)
        travel.go()
        travel.go()
        assert travel.estimate() == 0
        assert travel.go() < 1024
        (seen / "srv/7").write_text("changed")
        assert travel.estimate() > 0
        assert travel.go() < 2048
        assert same(target, upper)


def test_lost_events_are_made_good(place: Path) -> None:
    with overlay(place) as (upper, seen, target), Rounds(upper, target, seen=seen) as travel:
        travel.go()
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit // 2 + 10):
            (seen / "srv/f").write_bytes(b"%d" % number)
            (seen / "srv/f").unlink()
        (seen / "srv/last").write_text("x")
        travel.go()
        assert same(target, upper)
        (seen / "srv/after").write_text("y")
        travel.go()
        assert same(target, upper)


LIES: tuple[tuple[Record, ...], ...] = (
    (Make(b"../x", stat.S_IFREG),),
    (Make(b"/x", stat.S_IFREG),),
    (Make(b"a//b", stat.S_IFREG),),
    (Make(b"l", stat.S_IFLNK, 0, b"/etc"), Make(b"l/insula-lie", stat.S_IFREG)),
    (Make(b"l", stat.S_IFLNK, 0, b"/etc/passwd"), Open(b"l", 1)),
    (Make(b"l", stat.S_IFLNK, 0, b"/etc"), Remove(b"l/passwd")),
    (Make(b"l", stat.S_IFLNK, 0, b"/etc"), Link(b"x", b"l/passwd")),
    (Make(b"b", stat.S_IFBLK),),
    (Make(b"x", stat.S_IFREG, 77),),
    (Make(b"x", stat.S_IFDIR), Move(b"x", 1)),
    (Write(0, 1),),
    (Make(b"x", stat.S_IFREG), Open(b"x", 1 << 60)),
    (Make(b"x", stat.S_IFREG), Open(b"x", 1), Write(-1, 1)),
    (Make(b"x", stat.S_IFREG), Attributes(b"x", 0o644, 70000, 0, 0)),
    (Make(b"x", stat.S_IFREG), Attributes(b"x", 0o644, 0, 0, 0, (("trusted.other", b""),))),
)


@pytest.mark.parametrize("records", LIES)
def test_a_source_that_lies_is_refused(place: Path, records: tuple[Record, ...]) -> None:
    near, far = socket.socketpair()
    out, taken = Wire(near), Wire(far)
    (place / "t").mkdir()
    opened = os.open(place / "t", os.O_RDONLY | os.O_DIRECTORY)
    target = FileTarget(opened)
    out.send_stream(encode(each) for each in records)
    with pytest.raises(ProtocolError):
        target.receive(FileRound(), taken)
    target.close()
    os.close(opened)
    out.close()
    taken.close()


@given(st.binary(max_size=300))
def test_noise_is_refused_or_means_nothing(noise: bytes) -> None:
    near, far = socket.socketpair()
    out, taken = Wire(near), Wire(far)
    with tempfile.TemporaryDirectory() as name:
        opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        target = FileTarget(opened)
        out.send_stream([noise])
        with contextlib.suppress(ProtocolError):
            target.receive(FileRound(), taken)
        target.close()
        os.close(opened)
    out.close()
    taken.close()


def dig(folder: Path, name: str, *, depth: int) -> None:
    """Make folders in each other, also where no path reaches."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_folders_as_deep_as_can_be_come_through(place: Path) -> None:
    for each in ("source", "target"):
        (place / each).mkdir()
    dig(place / "source", "a", depth=MAX_DEPTH)
    with Rounds(place / "source", place / "target", seen=None) as rounds:
        rounds.go()
    assert described(place / "source") == described(place / "target")


@pytest.mark.parametrize(("name", "depth"), [("a", MAX_DEPTH + 1), ("a", 900), ("b" * 250, 17)])
def test_folders_that_are_too_deep_are_refused_before_the_other_side_is(
    place: Path, name: str, depth: int
) -> None:
    for each in ("source", "target"):
        (place / each).mkdir()
    dig(place / "source", name, depth=depth)
    with (
        Rounds(place / "source", place / "target", seen=None) as rounds,
        pytest.raises(MigrationFailed, match="too deep"),
    ):
        rounds.go()
    folder = os.open(place / "source", os.O_RDONLY)
    try:
        with pytest.raises(InvalidImage, match="too deep"):
            list(pack_tree(folder, form=Form.UPPER))
    finally:
        os.close(folder)

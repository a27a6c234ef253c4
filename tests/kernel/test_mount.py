# SPDX-License-Identifier: Apache-2.0
"""Mounts, id mappings and overlays of id-mapped layers.  Mounts that are attached are so in a child's own namespace."""

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import forked
from insula.kernel import idmap, libc, mount, overlay

HOST_ROOT = 100_000
RANGES = (idmap.Range(0, HOST_ROOT, 65_536),)
CLONE_NEWNS = 0x00020000
#: By descriptor, and as kernels before 6.15 want it: attached in a child.
WAYS = pytest.mark.parametrize("make", (mount.overlay, overlay.make_attached), ids=("detached", "attached"))
Make = Callable[..., int]


def directory(path: str | Path, *, at: int | None = None) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY, dir_fd=at)


def in_own_mounts(act: Callable[[], str | None]) -> str:
    def child() -> str | None:
        libc.unshare(CLONE_NEWNS)
        mount.set_propagation("/", propagation=mount.MS_PRIVATE)
        return act()

    return forked.run(child)


def names(fd: int) -> list[str]:
    with ExitStack() as stack:
        listed = os.open(".", os.O_RDONLY, dir_fd=fd)
        stack.callback(os.close, listed)
        return sorted(os.listdir(listed))


def mapped_overlay(base: Path, make: Make = mount.overlay) -> int:
    """Two lower layers and an upper one, all id-mapped; the descriptors end with the child that made them."""
    userns = idmap.user_namespace(uids=RANGES, gids=RANGES)
    lower = [idmap.idmapped_clone(directory(base / name), userns, read_only=True) for name in ("high", "low")]
    top = idmap.idmapped_clone(directory(base / "top"), userns)
    made = make(
        lower_fds=lower,
        upper_fd=directory("upper", at=top),
        work_fd=directory("work", at=top),
        source="insula",
        owner=(HOST_ROOT, HOST_ROOT),
    )
    mount.attach(made, str(base / "root"))
    libc.setns(userns, idmap.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.chdir(base / "root")
    return made


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("high/etc", "low/etc", "low/gone", "top/upper", "top/work", "root"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "low/etc/file").write_text("low")
    (tmp_path / "high/etc/file").write_text("high")
    (tmp_path / "low/only").write_text("low")
    (tmp_path / "low/gone/x").write_text("x")
    for above in (tmp_path, *tmp_path.parents):  # the mapped root walks in from outside
        if above != Path("/") and above.owner() == "root":
            above.chmod(above.stat().st_mode | 0o111)
    return tmp_path


@WAYS
def test_an_overlay_of_mapped_layers_is_roots_own_inside(base: Path, make: Make) -> None:
    def child() -> str:
        mapped_overlay(base, make)
        return f"{Path('etc/file').read_text()} {os.stat('etc/file').st_uid} {os.stat('.').st_uid}"

    assert in_own_mounts(child) == "high 0 0"


@WAYS
def test_what_is_written_inside_is_on_disk_with_the_containers_ids(base: Path, make: Make) -> None:
    def child() -> None:
        mapped_overlay(base, make)
        Path("new").write_text("new")
        Path("owned").touch()
        os.chown("owned", 33, 34)
        Path("etc/file").write_text("changed")
        os.setxattr("new", "user.word", b"value")

    in_own_mounts(child)
    upper = base / "top/upper"
    assert ((upper / "new").stat().st_uid, (upper / "owned").stat().st_uid) == (0, 33)
    assert (upper / "etc/file").read_text() == "changed"
    assert (base / "high/etc/file").read_text() == "high"
    assert os.getxattr(upper / "new", "user.word") == b"value"


@WAYS
def test_whiteouts_and_directory_renames_work(base: Path, make: Make) -> None:
    def child() -> str:
        mapped_overlay(base, make)
        os.unlink("only")
        os.rename("gone", "moved")
        return " ".join(sorted(os.listdir("."))) + " " + Path("moved/x").read_text()

    assert in_own_mounts(child) == "etc moved x"
    whiteout = (base / "top/upper/only").lstat()
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0
    assert os.getxattr(base / "top/upper/moved", "trusted.overlay.redirect") == b"gone"


@WAYS
def test_a_container_cannot_forge_the_marks_of_the_overlay(base: Path, make: Make) -> None:
    def child() -> str:
        mapped_overlay(base, make)
        try:
            os.setxattr("etc", "trusted.overlay.redirect", b"/secret")
        except PermissionError:
            return "refused"
        return "accepted"

    assert in_own_mounts(child) == "refused"


@WAYS
def test_a_read_only_overlay_of_the_most_layers(tmp_path: Path, make: Make) -> None:
    with ExitStack() as stack:
        fds = []
        for number in range(mount.OVERLAY_LAYERS):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / f"file{number}").touch()
            fds.append(directory(tmp_path / str(number)))
            stack.callback(os.close, fds[-1])
        made = make(lower_fds=fds, upper_fd=None, work_fd=None, source="many")
        stack.callback(os.close, made)
        assert len(names(made)) == mount.OVERLAY_LAYERS
        with pytest.raises(OSError, match="1 to 128"):
            mount.overlay(lower_fds=[*fds, fds[0]], upper_fd=None, work_fd=None, source="many")


@WAYS
def test_an_overlay_of_plain_folders(base: Path, make: Make) -> None:
    with ExitStack() as stack:
        fds = [directory(base / name) for name in ("low", "top/upper", "top/work")]
        fds.append(make(lower_fds=fds[:1], upper_fd=fds[1], work_fd=fds[2], source="plain"))
        for fd in fds:
            stack.callback(os.close, fd)
        assert names(fds[-1]) == ["etc", "gone", "only"]


def test_the_kernels_own_words_are_in_the_error() -> None:
    with pytest.raises(OSError, match=r"fsconfig: .*nonsense"):
        mount.filesystem("tmpfs", source="x", options=["nonsense=1"])


def test_a_tmpfs_is_limited_and_vanishes_unattached() -> None:
    made = mount.tmpfs(size_bytes=1 << 20, mode=0o750, uid=7)
    try:
        found, size = os.stat(made), os.statvfs(f"/proc/self/fd/{made}")
        assert (found.st_uid, found.st_mode & 0o777) == (7, 0o750)
        assert size.f_blocks * size.f_frsize == 1 << 20
    finally:
        os.close(made)


def test_a_bind_is_attached_read_only_by_descriptor(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()

    def child() -> str:
        made = mount.bind_fd(directory(tmp_path / "from"), attributes=mount.MOUNT_ATTR_RDONLY)
        mount.attach(made, directory(tmp_path / "to"))
        try:
            (tmp_path / "to/file").touch()
        except OSError as error:
            refused = str(error.strerror)
        mount.set_attributes(made, clear=mount.MOUNT_ATTR_RDONLY)
        (tmp_path / "to/file").touch()
        mount.detach(str(tmp_path / "to"))
        return f"{refused} {os.listdir(tmp_path / 'to')} {os.listdir(tmp_path / 'from')}"

    assert in_own_mounts(child) == "Read-only file system [] ['file']"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (mount.proc, "self"),
        (mount.sysfs, "class"),
        (mount.devpts, "ptmx"),
        (mount.mqueue, None),
        (mount.cgroup2, "cgroup.procs"),
    ],
)
def test_kernel_file_systems_are_made_detached(make: Callable[[], int], expected: str | None) -> None:
    made = make()
    try:
        assert expected is None or expected in names(made)
    finally:
        os.close(made)


def test_a_bad_mapping_names_the_file() -> None:
    overlapping = (idmap.Range(0, 1000, 10), idmap.Range(5, 2000, 10))
    with pytest.raises(OSError, match="Invalid argument") as caught:
        idmap.user_namespace(uids=overlapping, gids=RANGES)
    assert str(caught.value.filename).endswith("uid_map")


def test_a_mapped_clone_shows_other_ids(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with ExitStack() as stack:
        fds = [directory(tmp_path), idmap.user_namespace(uids=RANGES, gids=RANGES)]
        fds.append(idmap.idmapped_clone(fds[0], fds[1]))
        for fd in fds:
            stack.callback(os.close, fd)
        assert os.stat("file", dir_fd=fds[2]).st_uid == HOST_ROOT
        with pytest.raises(OSError, match="mount_setattr"):
            proc = directory("/proc")
            stack.callback(os.close, proc)
            idmap.idmapped_clone(proc, fds[1])


@pytest.mark.parametrize("kind", ["plain", "mapped"])
def test_what_is_mounted_in_a_clone_is_not_mounted_where_that_came_from(tmp_path: Path, kind: str) -> None:
    """Though the host's mounts are shared, as systemd makes them."""
    for name in ("host/volume/inner", "container"):
        (tmp_path / name).mkdir(parents=True)

    def child() -> str:
        host = str(tmp_path / "host")
        mount.attach(mount.clone(directory(host)), host)
        mount.set_propagation(host, propagation=mount.MS_SHARED)
        volume = directory(f"{host}/volume")
        if kind == "plain":
            made = mount.clone(volume)
        else:
            made = idmap.idmapped_clone(volume, idmap.user_namespace(uids=RANGES, gids=RANGES))
        mount.attach(made, str(tmp_path / "container"))
        mount.attach(mount.tmpfs(), str(tmp_path / "container/inner"))
        (tmp_path / "container/inner/file").touch()
        return " ".join(os.listdir(f"{host}/volume/inner"))

    assert in_own_mounts(child) == ""

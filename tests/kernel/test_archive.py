# SPDX-License-Identifier: Apache-2.0
"""Files into and out of a container: an overlay of id-mapped layers as its root, hostile links and bind mounts in it."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

import forked
from insula.boot.build import prepare_root
from insula.boot.protocol import LimitsPlan, ProgramPlan, RootPlan, StartPlan
from insula.kernel import idmap, libc, mount
from insula.model.errors import (
    BadRequest,
    Denied,
    DiskFull,
    InvalidImage,
    PathEscapes,
    PathNotFound,
    Unsupported,
    WrongState,
)
from insula.model.grant import Grant
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord, ImageConfig
from insula.model.spec import MountKind, MountWish, Spec
from insula.runtime import archive
from insula.runtime.context import Runtime

UID_BASE = 300_000
RANGES = (idmap.Range(0, UID_BASE, 65536),)
RECORD = ContainerRecord(
    id="a" * 64,
    name="web",
    tenant="alice",
    spec=Spec(image="host", mounts=(MountWish(kind=MountKind.VOLUME, target="/data"),)),
    image="sha256:1",
    layers=(),
    config=ImageConfig(),
    status=Status.EXITED,
    uid_base=UID_BASE,
    created_at=1.0,
)
GRANT = cast(Grant, None)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The folders of a stopped container: a layer, an upper folder, as they lie on disk."""
    low = tmp_path / "low"
    for folder in ("etc", "run", "var", "srv/deep", "data", "home/user"):
        (low / folder).mkdir(parents=True)
    (low / "etc/passwd").write_text("root:x:0:0\n")
    (low / "run/pid").write_text("1\n")
    (low / "var/run").symlink_to("/run")
    (low / "var/out").symlink_to("../../../../../../etc")
    (low / "srv/deep/file").write_text("deep\n")
    os.link(low / "srv/deep/file", low / "srv/hard")
    (low / "home/user/mine").write_text("mine\n")
    os.chown(low / "home/user/mine", 1000, 1000)
    (low / "home/user/mine").chmod(0o600)
    for folder in ("c/upper", "c/work"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def plan(state: Path) -> StartPlan:
    return StartPlan(
        key=RECORD.id,
        uid_base=UID_BASE,
        cgroup_parent="insula",
        limits=LimitsPlan(),
        root=RootPlan(lower=(str(state / "low"),), upper=str(state / "c/upper"), work=str(state / "c/work")),
        hostname="web",
        program=ProgramPlan(argv=("true",), environment=()),
        log="",
    )


@pytest.fixture
def runtime(state: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Only what an archive asks of a runtime: the record, its lock, the view that the spawner makes."""

    @contextmanager
    def locked(_container: str) -> Iterator[None]:
        yield

    def view(wanted: StartPlan) -> int:
        namespace = idmap.user_namespace(uids=RANGES, gids=RANGES)
        try:
            return prepare_root(wanted, namespace)
        finally:
            os.close(namespace)

    monkeypatch.setattr(archive, "start_plan", lambda _runtime, _record: plan(state))
    found = SimpleNamespace(
        find=lambda _grant, _ref: RECORD,
        locked=locked,
        spawner=SimpleNamespace(view=view, knows_tenants=False),
    )
    return cast(Runtime, found)


def read(runtime: Runtime, path: str) -> dict[str, tarfile.TarInfo]:
    output = io.BytesIO()
    archive.read_archive(GRANT, runtime, "web", path=path, output=output)
    with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as tar:
        return {member.name: member for member in tar}


def packed(*members: tarfile.TarInfo, data: bytes = b"") -> io.BytesIO:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    output.seek(0)
    return output


def member(
    name: str, *, uid: int = 0, mode: int = 0o644, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.uid = made.gid = uid
    made.mode, made.type, made.linkname = mode, kind, link
    return made


def write(runtime: Runtime, path: str, source: io.BytesIO) -> None:
    archive.write_archive(GRANT, runtime, "web", path=path, source=source)


def test_a_folder_is_read_with_ids_of_the_container(runtime: Runtime) -> None:
    found = read(runtime, "/home")
    assert list(found) == ["home", "home/user", "home/user/mine"]
    assert (found["home/user/mine"].uid, found["home/user/mine"].mode) == (1000, 0o600)


def test_a_file_is_read_under_its_own_name(runtime: Runtime) -> None:
    assert list(read(runtime, "/srv/deep/file")) == ["file"]


def test_hard_links_keep_together(runtime: Runtime) -> None:
    found = read(runtime, "/srv")
    assert found["srv/deep/file"].linkname == "srv/hard"


def test_the_root_has_a_name(runtime: Runtime) -> None:
    assert {"rootfs", "rootfs/etc/passwd"} <= set(read(runtime, "/"))


@pytest.mark.parametrize("path", ["/var/run/pid", "/var/run/../run/pid", "/../../run/pid", "var/run/pid"])
def test_links_stay_inside(runtime: Runtime, path: str) -> None:
    assert list(read(runtime, path)) == ["pid"]


def test_a_link_is_read_as_a_link_and_followed_with_a_slash(runtime: Runtime) -> None:
    assert read(runtime, "/var/run")["run"].linkname == "/run"
    assert list(read(runtime, "/var/run/")) == ["run", "run/pid"]
    assert archive.stat_path(GRANT, runtime, "web", path="/var/run").link_target == "/run"
    assert archive.stat_path(GRANT, runtime, "web", path="/var/run/").is_directory
    assert list(read(runtime, "/var/out/")) == ["out", "out/passwd"]


def test_what_is_not_there(runtime: Runtime) -> None:
    with pytest.raises(PathNotFound, match="cannot find `/nowhere`"):
        read(runtime, "/nowhere")
    with pytest.raises(PathNotFound):
        archive.stat_path(GRANT, runtime, "web", path="/etc/passwd/x")
    with pytest.raises(PathNotFound):
        write(runtime, "/nowhere", packed(member("x")))
    with pytest.raises(BadRequest):
        read(runtime, "/etc/..")


def test_files_are_written_with_ids_of_the_container(runtime: Runtime, state: Path) -> None:
    write(runtime, "/var/run", packed(member("a"), member("dir", kind=tarfile.DIRTYPE, mode=0o750, uid=7), member("dir/b", uid=1000, mode=0o4755), data=b"hi"))  # fmt: skip
    upper = state / "c/upper/run"
    assert (upper / "a").stat().st_uid == 0
    assert stat.S_IMODE((upper / "dir").stat().st_mode) == 0o750
    status = (upper / "dir/b").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1000, 0o4755)
    assert (upper / "dir/b").read_bytes() == b"hi"
    assert list(read(runtime, "/run")) == ["run", "run/a", "run/pid", "run/dir", "run/dir/b"]


def test_a_file_that_is_there_is_replaced_and_its_folder_stays_as_it_is(
    runtime: Runtime, state: Path
) -> None:
    before = archive.stat_path(GRANT, runtime, "web", path="/home/user")
    write(runtime, "/home/user", packed(member(".", kind=tarfile.DIRTYPE, mode=0o700, uid=5), member("mine"), data=b"new"))  # fmt: skip
    assert (state / "c/upper/home/user/mine").read_bytes() == b"new"
    assert archive.stat_path(GRANT, runtime, "web", path="/home/user").mode == before.mode


@pytest.mark.parametrize(
    "hostile",
    [
        member("../x"),
        member("/x"),
        member("run/x"),
        member("x", uid=70_000),
        member("hard", kind=tarfile.LNKTYPE, link="run/pid"),
    ],
    ids=["up", "absolute", "through a link", "foreign id", "hard link through a link"],
)
def test_a_hostile_archive_is_refused(runtime: Runtime, state: Path, hostile: tarfile.TarInfo) -> None:
    with pytest.raises(InvalidImage):
        write(runtime, "/var", packed(hostile))
    assert not (state / "c/upper/run/x").exists()


def test_a_tar_that_is_cut_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InvalidImage):
        write(runtime, "/srv", io.BytesIO(packed(member("big"), data=bytes(100_000)).getvalue()[:5000]))


def test_a_volume_of_a_stopped_container_is_refused(runtime: Runtime) -> None:
    with pytest.raises(WrongState, match="`/data` is mounted only while container `web` runs"):
        write(runtime, "/data", packed(member("x")))


def test_much_data_goes_both_ways(runtime: Runtime) -> None:
    data = os.urandom(1 << 20) * 5
    write(runtime, "/srv", packed(member("big"), data=data))
    output = io.BytesIO()
    archive.read_archive(GRANT, runtime, "web", path="/srv/big", output=output)
    with tarfile.open(fileobj=output if not output.seek(0) else None) as tar:
        file = tar.extractfile("big")
        assert file is not None and file.read() == data


# ------------------------------------------------------------------------------------------------- a running container


@contextmanager
def running(state: Path) -> Iterator[int]:
    """A process in a user, mount and pid namespace of its own with that root, /proc, a secret of the host bound in."""
    told, tell = os.pipe()
    held, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        namespace = idmap.user_namespace(uids=RANGES, gids=RANGES)
        root = prepare_root(plan(state), namespace)
        libc.unshare(0x00020000)
        mount.set_propagation("/", propagation=mount.MS_PRIVATE)
        (state / "stage").mkdir()
        mount.attach(root, str(state / "stage"))
        secret = os.open(state / "secret", os.O_PATH | os.O_DIRECTORY)
        mount.attach(mount.bind_fd(secret), os.open(state / "stage/data", os.O_PATH | os.O_DIRECTORY))
        mount.attach(mount.sysfs(), os.open(state / "stage/srv", os.O_PATH | os.O_DIRECTORY))
        small = mount.tmpfs(size_bytes=65536, mode=0o755, uid=UID_BASE, gid=UID_BASE)
        mount.attach(small, os.open(state / "stage/home", os.O_PATH | os.O_DIRECTORY))
        os.chroot(state / "stage")
        os.chdir("/")
        os.write(tell, b"1")
        os.read(held, 1)
        os._exit(0)
    os.close(held)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"1"
        yield child
    finally:
        os.close(told)
        os.close(hold)
        os.waitpid(child, 0)


@pytest.fixture
def live(runtime: Runtime, state: Path) -> Iterator[Runtime]:
    (state / "secret").mkdir()
    (state / "secret/key").write_text("secret")
    (state / "secret/key").chmod(0o600)
    (state / "secret/open").write_text("open")
    with ExitStack() as held, pytest.MonkeyPatch.context() as patch:
        pid = held.enter_context(running(state))
        group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("/")[2]
        record = replace(RECORD, status=Status.RUNNING, pid=pid, id=group or "/")
        patch.setattr(runtime, "find", lambda _grant, _ref: record)
        yield runtime


def test_a_running_container_shows_its_mounts_by_its_own_right(live: Runtime) -> None:
    assert list(read(live, "/data/open")) == ["open"]
    assert list(read(live, "/var/run/pid")) == ["pid"]
    with pytest.raises(Denied):
        read(live, "/data/key")
    with pytest.raises((Denied, InvalidImage)):
        write(live, "/data", packed(member("x")))


def test_a_folder_of_sysfs_keeps_its_owner(live: Runtime) -> None:
    before = os.stat("/sys/kernel")
    with pytest.raises((Denied, InvalidImage)):
        write(live, "/srv", packed(member("kernel", kind=tarfile.DIRTYPE, mode=0o777)))
    assert os.stat("/sys/kernel")[:6] == before[:6]


def test_a_full_disk_is_told(live: Runtime) -> None:
    with pytest.raises(DiskFull, match="cannot unpack `big`: no space left"):
        write(live, "/home", packed(member("big"), data=os.urandom(1 << 20)))


def test_a_pid_of_another_process_is_no_container(runtime: Runtime) -> None:
    with pytest.raises(WrongState, match="just ended"):
        archive.open_root(replace(RECORD, pid=os.getpid(), status=Status.RUNNING))
    with pytest.raises(WrongState, match="just ended"):
        archive.open_root(replace(RECORD, pid=1 << 22, status=Status.RUNNING))


def test_the_worker_needs_no_package() -> None:
    def act() -> str:
        import subprocess
        import sys

        code = "import sys; sys.path.insert(0, sys.argv[1]); import insula.runtime.archive_worker; print('msgspec' in sys.modules)"
        return subprocess.run(
            [sys.executable, "-SI", "-c", code, str(Path(archive.__file__).parents[2])],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert forked.run(act).strip() == "False"


def test_errors_of_links_and_devices() -> None:
    assert isinstance(archive.explain(OSError(40, "x"), "/p"), PathEscapes)
    assert isinstance(archive.explain(OSError(5, "x"), "/p"), Unsupported)

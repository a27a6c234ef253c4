# SPDX-License-Identifier: Apache-2.0
"""Images whose links and odd files lead outside: a start is refused or safe, and nothing on the host changes."""

import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.boot.protocol import FilePlan, MountPlan
from spawned import Ended, Refused, Spawned

#: A path inside the image that is made to lead elsewhere.
PLACES = (
    "dev", "dev/null", "dev/pts", "dev/shm", "proc", "sys", "etc", "etc/resolv.conf", "etc/hostname", "etc/passwd",
    "etc/group", "data", "bin", "tmp", "root",
)  # fmt: skip
FILES = (
    FilePlan(path="/etc/hostname", text="name\n"),
    FilePlan(path="/etc/resolv.conf", text="nameserver 192.0.2.1\n"),
)
SCRIPT = """
for each in /etc/passwd /etc/hostname /root/precious /data/precious; do test ! -f $each || cat $each; done
for each in /root/new /tmp/new /data/new; do echo bad > $each; done
"""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the host that everybody may write to."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("precious", "null", "resolv.conf", "hostname"):
        (folder / name).write_text("the host's own words")
        (folder / name).chmod(0o666)
    folder.chmod(0o777)
    for parent in folder.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    return folder


def _tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        about = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found[str(path)] = (about.st_mode, about.st_uid, about.st_ino, content)
    return found


def _layer(tmp_path: Path, place: str, make: Callable[[Path], None]) -> str:
    layer = tmp_path / "layer"
    target = layer / place
    target.parent.mkdir(parents=True)
    for folder in (layer, *target.parent.relative_to(layer).parents):
        (layer / folder).chmod(0o755)
    make(target)
    return str(layer)


def _run(host: Spawned, layer: str, mounts: tuple[MountPlan, ...] = ()) -> Ended | None:
    try:
        return host.run_shell(SCRIPT, lower=(layer, str(host.root)), files=FILES, mounts=mounts)
    except Refused:
        return None


def _judge(ended: Ended | None, victim: Path, before: dict[str, tuple[int, int, int, bytes]]) -> None:
    assert _tree(victim) == before
    if ended is not None:
        assert "the host's own words" not in ended.out


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["absolute", "upwards", "magic"])
def test_link_to_outside(host: Spawned, tmp_path: Path, victim: Path, place: str, form: str) -> None:
    target = {
        "absolute": str(victim),
        "upwards": "../" * 20 + str(victim)[1:],
        "magic": f"/proc/self/root/../..{victim}",
    }[form]
    if place.count("/"):
        target = f"{target}/{os.path.basename(place)}"
    before = _tree(victim)
    layer = _layer(tmp_path, place, lambda path: path.symlink_to(target))
    _judge(_run(host, layer), victim, before)


@pytest.mark.parametrize("place", PLACES)
def test_fifo_in_the_place(host: Spawned, tmp_path: Path, victim: Path, place: str) -> None:
    before = _tree(victim)
    _judge(_run(host, _layer(tmp_path, place, lambda path: os.mkfifo(path, 0o666))), victim, before)


@pytest.mark.parametrize("place", [each for each in PLACES if "/" in each])
def test_folder_in_the_place(host: Spawned, tmp_path: Path, victim: Path, place: str) -> None:
    before = _tree(victim)
    _judge(_run(host, _layer(tmp_path, place, lambda path: path.mkdir(0o755))), victim, before)


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_mount_target_that_leads_outside(host: Spawned, tmp_path: Path, victim: Path, kind: str) -> None:
    before = _tree(victim)
    layer = _layer(tmp_path, "data", lambda path: path.symlink_to(victim))
    source = tmp_path / "source"
    source.mkdir()
    mounts = (MountPlan(kind=kind, source=str(source) if kind == "bind" else "", target="/data/new"),)
    _judge(_run(host, layer, mounts), victim, before)


def test_absolute_links_within_the_image_still_work(host: Spawned, tmp_path: Path) -> None:
    layer = _layer(tmp_path, "data", lambda path: path.symlink_to("/home"))
    mounts = (MountPlan(kind="tmpfs", target="/data/inner"),)
    ended = host.run_shell("mount | grep -c ' /home/inner '", lower=(layer, str(host.root)), mounts=mounts)
    assert ended.out == "1\n", ended


def test_linked_resolv_conf_becomes_a_file(host: Spawned, tmp_path: Path, victim: Path) -> None:
    before = _tree(victim)
    layer = _layer(tmp_path, "etc/resolv.conf", lambda path: path.symlink_to(victim / "resolv.conf"))
    ended = host.run_shell(
        "cat /etc/resolv.conf; readlink /etc/resolv.conf", lower=(layer, str(host.root)), files=FILES
    )
    assert ended.out == "nameserver 192.0.2.1\n"
    _judge(ended, victim, before)


def test_a_working_directory_that_leads_outside(host: Spawned, tmp_path: Path, victim: Path) -> None:
    before = _tree(victim)
    layer = _layer(tmp_path, "data", lambda path: path.symlink_to(victim))
    try:
        ended = host.run_shell("ls -A; pwd", lower=(layer, str(host.root)), working_directory="/data/new")
    except Refused:
        ended = None
    _judge(ended, victim, before)


def test_exec_after_the_program_exchanged_what_exec_uses(host: Spawned, victim: Path) -> None:
    before = _tree(victim)
    script = f"rm /etc/passwd /etc/group; ln -s {victim}/precious /etc/passwd; mkfifo /etc/group; echo ready; exec sleep 1000"
    container = host.start("/bin/sh", "-c", script, attach=True)
    assert container.attached is not None
    container.attached.read_until(b"ready")
    assert host.execute_shell(container, "id -u").out == "0\n"
    with pytest.raises(Refused):
        host.execute(container, "/bin/true", user="user")
    assert _tree(victim) == before


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_an_image_with_a_link_for_a_mount_point_is_refused(host: Spawned, name: str) -> None:
    layer = host.state / uuid.uuid4().hex
    layer.mkdir(mode=0o755)
    (layer / name).symlink_to("/tmp")
    with pytest.raises(Refused) as refused:
        host.start("/bin/true", lower=(str(layer), str(host.root)))
    assert refused.value.failure.code == "invalid_image"
    assert f"`/{name}`" in refused.value.failure.message


def test_what_is_mounted_on_dev_null_masks_nothing(host: Spawned) -> None:
    mine = host.state / uuid.uuid4().hex
    mine.write_text("mine\n")
    volume = MountPlan(kind="bind", source=str(mine), target="/dev/null")
    ended = host.run_shell(
        "cat /dev/null /proc/keys /proc/timer_list; stat -c %t,%T /proc/keys", mounts=(volume,)
    )
    assert ended.out.splitlines() == ["mine", "1,3"]

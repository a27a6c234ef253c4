# SPDX-License-Identifier: Apache-2.0
"""A container's own disk: what it writes into its root ends where its limit says, nobody else's does, and nothing stays."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from insula.runtime.fault import VARIABLE
from insula.runtime.own_disk import Step
from loops import is_free, shown
from waiting import DEADLINE_S

MIB = 1 << 20
FILL = "dd if=/dev/zero of=/x bs=1M count=60"


@pytest.fixture(autouse=True)
def without_disks(host: Host) -> Iterator[None]:
    yield
    host.remove_all()
    host.root("tenant", "set", host.alice.tenant, "disk=default", "inodes=default")
    assert not mounts(host)


def mounts(host: Host) -> list[str]:
    """Return what is mounted below the host's containers and tenants."""
    folders = tuple(f"{host.folder}/state/{owners}/" for owners in ("containers", "tenants"))
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [place for line in file if (place := line.split()[4]).startswith(folders)]


def test_others_cannot_tell_whose_disks_there_are(
    host: Host, root: Person, alice: Person, bob: Person
) -> None:
    root("tenant", "set", alice.tenant, "disk=128m")
    alice("run", "-d", "--name", "c", "--disk", "32m", "box", "sleep", "1000")
    names = "".join(map(text_of, Path("/sys/block").glob("loop*/loop/backing_file")))
    assert names, "no disk is shown"
    assert alice.look("c")["id"][:12] not in names and alice.tenant not in names
    script = "ls -A /sys/block /sys/class/block /sys/dev/block /sys/fs/ext4 2>/dev/null | grep -v :; cat /proc/diskstats /proc/partitions"
    assert bob("run", "--rm", "box", "sh", "-c", script).split() == []


def text_of(path: Path) -> str:
    with contextlib.suppress(OSError):  # another test's device, which is being let go of
        return path.read_text()
    return ""


def folder_of(host: Host, person: Person, name: str) -> Path:
    return (host.folder / "state/containers" / person.look(name)["id"]).resolve()


def test_its_root_is_full_at_its_limit_and_nobody_elses(host: Host, alice: Person) -> None:
    full = alice.give("run", "--name", "small", "--disk", "32m", "box", "sh", "-c", FILL)
    assert full.code != 0 and "No space left" in full.err
    assert alice.look("small")["spec"]["disk_bytes"] == 32 * MIB
    alice("run", "--rm", "box", "sh", "-c", FILL)
    volume = "dd if=/dev/zero of=/d/x bs=1M count=60"
    alice("run", "--rm", "-v", "data:/d", "--storage-opt", "size=32m", "box", "sh", "-c", volume)
    again = alice.give("start", "-a", "small")  # also full it can be started
    assert "No space left" in again.err
    image = folder_of(host, alice, "small") / "disk.img"
    assert image.stat().st_blocks * 512 <= 34 * MIB
    device = shown(image)
    alice("rm", "small")
    assert not image.parent.exists()
    wait_until(lambda: is_free(device), what="its device is free")


def test_files_end_as_bytes_do(alice: Person) -> None:
    many = "i=0; while [ $i -lt 2000 ]; do : > /f$i || exit 3; i=$((i+1)); done"
    done = alice.give("run", "--rm", "--disk", "32m", "--inodes", "1000", "box", "sh", "-c", many)
    assert done.code != 0 and "No space left" in done.err


def test_what_makes_no_sense_or_is_too_much_is_refused_with_the_figure(
    host: Host, root: Person, alice: Person
) -> None:
    assert "at least 16m" in alice.fails("create", "--disk", "1m", "box", "true", code=125)
    assert "--disk SIZE, too" in alice.fails("create", "--inodes", "1000", "box", "true", code=125)
    assert "size=1g" in alice.fails("create", "--storage-opt", "x=1", "box", "true", code=125)
    root("tenant", "set", alice.tenant, "disk=128m", "inodes=2000")
    assert "the limit is 128" in alice.fails("create", "--disk", "256m", "box", "true", code=125)
    assert "the limit is 2000" in alice.fails(
        "create", "--disk", "64m", "--inodes", "9999", "box", "true", code=125
    )
    alice("create", "--name", "one", "--disk", "80m", "box", "true")
    assert "80.0MiB used" in alice.fails("create", "--disk", "80m", "box", "true", code=125)
    assert [each["name"] for each in alice.json("ps", "-a", "--format", "json")] == ["one"]


def test_it_lies_in_its_tenants_and_counts_there(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "disk=128m")
    full = alice.give("run", "--name", "small", "--disk", "32m", "box", "sh", "-c", FILL)
    assert "No space left" in full.err
    place = folder_of(host, alice, "small")
    assert place.parent == host.folder / "state/tenants" / alice.tenant / "disk/containers"
    used = next(
        each for each in alice.json("tenant", "show", "--format", "json") if each["resource"] == "disk"
    )
    assert 20 * MIB < used["used"] < 60 * MIB
    alice("run", "--rm", "box", "sh", "-c", FILL)
    root("tenant", "set", alice.tenant, "disk=160m")  # at rest, with the disk within
    assert os.path.ismount(place / "disk")
    assert "No space left" in alice.give("start", "-a", "small").err


def test_who_gets_a_tenants_disk_keeps_it(host: Host, root: Person, alice: Person) -> None:
    alice("run", "--name", "c", "--disk", "32m", "box", "sh", "-c", "[ -e /f ] && cat /f || echo kept > /f")
    root("tenant", "set", alice.tenant, "disk=128m")
    assert alice("start", "-a", "c") == "kept"
    place = folder_of(host, alice, "c")
    assert "tenants" in place.parts and os.path.ismount(place / "disk")


def test_it_is_there_after_a_kill_and_after_the_hosts_end(host: Host, alice: Person) -> None:
    words = "cat /g 2>/dev/null; echo kept > /g; sleep 1000"
    alice("run", "-d", "--name", "c", "--disk", "32m", "box", "sh", "-c", words)
    wait_until(lambda: alice.give("exec", "c", "cat", "/g").out == "kept\n", what="it has written")
    host.kill()
    host.start()
    assert alice("exec", "c", "cat", "/g") == "kept"
    used = alice.json("stats", "--no-stream", "--format", "json", "c")[0]
    assert 0 < used["disk_bytes"] < 10 * MIB and 24 * MIB < used["disk_limit_bytes"] <= 32 * MIB
    assert "DISK / LIMIT" in alice("stats", "--no-stream", "c")
    device = shown(folder_of(host, alice, "c") / "disk.img")
    host.tear_down()
    assert is_free(device) and not mounts(host)
    host.start()
    alice("start", "c")
    wait_until(lambda: alice("logs", "c") == "kept", what="it has read what it wrote before")
    assert "No space left" in alice.give("exec", "c", "sh", "-c", FILL).err
    alice("rm", "-f", "c")


@pytest.mark.parametrize("limit", ["default", "128m"], ids=["on the host's", "on its tenant's"])
@pytest.mark.parametrize("step", Step)
def test_insulad_killed_between_two_steps_leaves_nothing(
    host: Host, root: Person, alice: Person, monkeypatch: pytest.MonkeyPatch, *, step: Step, limit: str
) -> None:
    root("tenant", "set", alice.tenant, f"disk={limit}")
    alice("create", "--name", "old", "--disk", "32m", "box", "true")
    host.kill()
    monkeypatch.setenv(VARIABLE, f"{step}=kill")
    host.start()
    assert host.daemon is not None
    alice.give(*(["rm", "old"] if step is Step.DETACHED else ["create", "--disk", "32m", "box", "true"]))
    assert host.daemon.wait(timeout=DEADLINE_S) == -signal.SIGKILL
    monkeypatch.delenv(VARIABLE)
    host.start()
    places = [f"{host.folder}/state/tenants/{alice.tenant}/disk"] if limit != "default" else []
    assert sorted(mounts(host)) == sorted([*places, str(folder_of(host, alice, "old") / "disk")])
    assert len([*(host.folder / "state/containers").iterdir()]) == 1
    device = shown(folder_of(host, alice, "old") / "disk.img")
    alice("start", "-a", "old")
    alice("rm", "old")
    assert not [*(host.folder / "state/containers").iterdir()]
    wait_until(lambda: is_free(device), what="its device is free")

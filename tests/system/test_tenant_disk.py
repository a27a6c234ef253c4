# SPDX-License-Identifier: Apache-2.0
"""A tenant's own disk: bytes and files end where the limit says, and nothing of it stays when it goes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from insula.kernel import loop

MIB = 1 << 20


@pytest.fixture(autouse=True)
def without_disks(host: Host) -> Iterator[None]:
    yield
    host.remove_all()
    for person in (host.alice, host.bob):
        host.root("tenant", "set", person.tenant, "disk=default", "inodes=default")
    assert not list((host.folder / "state/tenants").glob("*"))


def disk(person: Person) -> tuple[int, int]:
    """Return used bytes and limit."""
    uses = person.json("tenant", "show", "--format", "json")
    found = next(each for each in uses if each["resource"] == "disk")
    return found["used"], found["limit"]


def image(host: Host, person: Person) -> Path:
    return host.folder / "state/tenants" / person.tenant / "disk.img"


def test_bytes_of_containers_and_volumes_end_together(
    host: Host, root: Person, alice: Person, bob: Person
) -> None:
    root("tenant", "set", alice.tenant, "disk=64m")
    alice(
        "run", "-v", "data:/d", "--name", "one", "box", "dd", "if=/dev/zero", "of=/d/x", "bs=1M", "count=30"
    )
    full = alice.give("run", "--name", "two", "box", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=60")
    assert full.code != 0 and "No space left" in full.err
    assert "ext4 in a file" in alice("tenant", "show")
    used, limit = disk(alice)
    assert 30 * MIB < used <= limit == 64 * MIB
    assert image(host, alice).stat().st_blocks * 512 <= 66 * MIB
    alice("rm", "two")
    alice("run", "--rm", "box", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=10")
    bob("run", "--rm", "box", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=70")


def test_files_end_as_bytes_do(root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "disk=64m", "inodes=2000")
    many = "i=0; while [ $i -lt 4000 ]; do : > /f$i || exit 3; i=$((i+1)); done"
    done = alice.give("run", "--rm", "box", "sh", "-c", many)
    assert done.code != 0 and "No space left" in done.err
    assert "made for as many" in root.fails("tenant", "set", alice.tenant, "inodes=5000")


def test_it_is_there_after_a_kill_and_after_the_hosts_end(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "disk=64m")
    alice(
        "run",
        "-d",
        "--name",
        "c",
        "-v",
        "data:/d",
        "box",
        "sh",
        "-c",
        "echo kept > /d/f; echo also > /g; sleep 1000",
    )
    wait_until(lambda: alice.give("exec", "c", "cat", "/g").out == "also\n", what="it has written")
    host.kill()
    host.start()
    assert alice("exec", "c", "cat", "/d/f", "/g") == "kept\nalso"
    host.tear_down()
    assert loop.find(str(image(host, alice))) is None
    host.start()
    alice("start", "c")
    assert alice("exec", "c", "cat", "/d/f") == "kept"


def test_it_grows_and_shrinks(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "disk=64m")
    alice(
        "create",
        "--name",
        "c",
        "-v",
        "data:/d",
        "box",
        "sh",
        "-c",
        "dd if=/dev/urandom of=/d/x bs=1M count=40 && md5sum /d/x",
    )
    before = alice("start", "-a", "c")
    root("tenant", "set", alice.tenant, "disk=128m")
    assert disk(alice)[1] == 128 * MIB == image(host, alice).stat().st_size
    alice("run", "--rm", "-v", "data:/d", "box", "dd", "if=/dev/urandom", "of=/d/y", "bs=1M", "count=50")
    assert "its files need more" in root.fails("tenant", "set", alice.tenant, "disk=64m")
    after = alice("run", "--rm", "-v", "data:/d", "box", "md5sum", "/d/x")
    assert after in before
    alice("run", "--rm", "-v", "data:/d", "box", "rm", "/d/x", "/d/y")
    root("tenant", "set", alice.tenant, "disk=72m")
    assert image(host, alice).stat().st_size == 72 * MIB


def test_who_has_files_already_gets_them_carried_there(host: Host, root: Person, alice: Person) -> None:
    alice(
        "run", "--name", "old", "-v", "data:/d", "box", "sh", "-c", "echo a > /d/f; echo b > /g; rm /etc/motd"
    )
    alice("run", "-d", "--name", "runs", "box", "sleep", "1000")
    assert "stop its containers" in root.fails("tenant", "set", alice.tenant, "disk=64m")
    alice("rm", "-f", "runs")
    root("tenant", "set", alice.tenant, "disk=64m")
    assert alice("run", "--rm", "-v", "data:/d", "box", "cat", "/d/f") == "a"
    assert alice("diff", "old").split() == ["D", "/etc/motd", "A", "/d", "A", "/g"] or "/etc/motd" in alice(
        "diff", "old"
    )
    folder = host.folder / "state/containers" / alice.look("old")["id"]
    assert folder.is_symlink() and os.path.ismount(host.folder / "state/tenants" / alice.tenant / "disk")
    assert "containers or volumes lie on it" in root.fails("tenant", "set", alice.tenant, "disk=none")


def test_everybodys_limit_gives_each_new_tenant_a_disk(host: Host, root: Person, bob: Person) -> None:
    root("tenant", "set", "--default", "disk=64m")
    try:
        bob("create", "box", "true")
        assert image(host, bob).exists()
    finally:
        host.remove_all()
        root("tenant", "set", "--default", "disk=none")

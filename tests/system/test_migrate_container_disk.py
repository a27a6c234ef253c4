# SPDX-License-Identifier: Apache-2.0
"""A container with a disk of its own moves, is written down and read again: the limit goes along, and holds there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.migrate.fault import Point
from insula.model.errors import DiskFull, InsulaError
from loops import is_free, shown
from two_hosts import TENANT, Conversation, Counter, Pair, mended_after, wait_until

MIB = 1 << 20
FILL = """
answer = 0
try:
    with open('/srv/much', 'wb', 0) as file:
        while answer < 200 << 20: answer += file.write(b'x' * (1 << 20))
        os.fsync(file.fileno())
except OSError as error:
    answer = error.errno
os.unlink('/srv/much')
"""
ENOSPC = 28


def folder_of(pair: Pair, host: str) -> Path:
    found = pair.find(host, "c")
    assert found is not None
    return (pair.host(host).folder / "state/containers" / found["id"]).resolve()


class Left:
    """What a host has of it now, to be looked for when it has left."""

    def __init__(self, pair: Pair, host: str) -> None:
        self.folder = folder_of(pair, host)
        self._device = shown(self.folder / "disk.img")

    def is_gone(self) -> bool:
        return not self.folder.exists() and is_free(self._device)


def test_it_moves_with_its_limit_there_and_back(pair: Pair) -> None:
    address = pair.run("c", disk_bytes=64 * MIB)
    talk, counter = Conversation(pair.world, address), Counter(pair.world, address)
    talk.run("open('/srv/old', 'wb').write(os.urandom(1 << 20) * 20); held = open('/srv/held', 'w')")
    talk.run(
        "import hashlib; sum = lambda: hashlib.sha256(open('/srv/old', 'rb').read()).hexdigest(); first = sum()"
    )
    assert talk.run(FILL) == ENOSPC
    counter.wait_for_more()
    for source, target in (("alpha", "beta"), ("beta", "alpha")):
        left = Left(pair, source)
        assert os.path.ismount(left.folder / "disk")
        pair.migrate("c", source, target)
        counter.wait_for_more()
        assert os.path.ismount(folder_of(pair, target) / "disk")
        assert wait_until(left.is_gone), [*left.folder.glob("*")]
        talk.run(f"held.write('{target}'); held.flush()")
        assert talk.run("answer = sum() == first") is True
        assert talk.run(FILL) == ENOSPC
    assert talk.run("answer = open('/srv/held').read()") == "betaalpha"
    counter.finish()
    talk.close()
    left = Left(pair, "alpha")
    pair.remove("c")
    assert wait_until(left.is_gone)


@contextmanager
def limited(pair: Pair, host: str, size: int) -> Iterator[None]:
    """Give the tenant a disk on one of the hosts for the time of the block, at whose end `c` goes."""
    path = f"/v1/tenants/{TENANT}"
    pair.client(host).call("PATCH", path, body={"limits": {"disk": size}})
    try:
        yield
    finally:
        pair.remove("c")
        pair.client(host).call("PATCH", path, body={"limits": {"disk": None}})


def test_it_moves_between_a_tenants_disk_and_none(pair: Pair) -> None:
    with limited(pair, "beta", 128 * MIB):
        talk = Conversation(pair.world, pair.run("c", disk_bytes=64 * MIB))
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            pair.migrate("c", source, target)
            assert talk.run(FILL) == ENOSPC
            assert ("tenants" in folder_of(pair, target).parts) is (target == "beta")
        talk.close()


def test_a_target_that_cannot_have_it_refuses_before_anything_stops(pair: Pair) -> None:
    with limited(pair, "beta", 64 * MIB):
        talk = Conversation(pair.world, pair.run("c", disk_bytes=100 * MIB))
        with pytest.raises(InsulaError, match="the limit is 64"):
            pair.migrate("c", "alpha", "beta")
        assert pair.status("alpha", "c") == "running"
        assert talk.run("answer = 1") == 1
        talk.close()


@pytest.mark.parametrize("leave_running", [False, True])
def test_a_checkpoint_is_restored_onto_it(pair: Pair, leave_running: bool) -> None:
    address = pair.run("c", disk_bytes=64 * MIB)
    with_file = Conversation(pair.world, address)
    with_file.run("open('/srv/old', 'wb').write(b'old' * 1000)")
    with_file.close()
    pair.act("alpha", "c", "checkpoints", name="one", leave_running=leave_running)
    if leave_running:
        talk = Conversation(pair.world, address)
        talk.run("open('/srv/old', 'w').write('new')")
        talk.close()
        pair.client("alpha").call("POST", "/v1/containers/c/kill", body={})
    assert wait_until(lambda: pair.status("alpha", "c") in ("exited", "checkpointed")), pair.status(
        "alpha", "c"
    )
    pair.act("alpha", "c", "restore", checkpoint="one")
    talk = Conversation(pair.world, address)
    assert talk.run("answer = open('/srv/old').read() == 'old' * 1000") is True
    assert talk.run(FILL) == ENOSPC
    talk.close()


def test_a_restore_without_room_for_both_says_so_and_leaves_the_room_as_it_was(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("c", disk_bytes=64 * MIB))
    talk.run("open('/srv/old', 'wb').write(os.urandom(40 << 20)); os.sync()")
    talk.close()
    pair.act("alpha", "c", "checkpoints", name="one", leave_running=True)
    pair.client("alpha").call("POST", "/v1/containers/c/kill", body={})
    assert wait_until(lambda: pair.status("alpha", "c") == "exited")
    place = folder_of(pair, "alpha") / "disk"
    used = os.statvfs(place).f_bavail
    with pytest.raises(DiskFull, match="beside those of now"):
        pair.act("alpha", "c", "restore", checkpoint="one")
    assert sorted(each.name for each in place.iterdir()) == ["upper", "work"]
    assert wait_until(lambda: os.statvfs(place).f_bavail >= used)
    assert pair.status("alpha", "c") == "exited"


@pytest.fixture
def broken(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


@pytest.mark.parametrize("point", [Point.TARGET_RESERVED, Point.TARGET_PREPARED, Point.TARGET_HELD])
def test_a_target_that_is_killed_has_nothing_of_it_left(broken: Pair, point: Point) -> None:
    talk = Conversation(broken.world, broken.run("c", disk_bytes=64 * MIB))
    broken.restart("beta", fault=f"{point}=kill")
    with pytest.raises(InsulaError):
        broken.migrate("c", "alpha", "beta")
    broken.wait_killed("beta")
    broken.restart("beta")
    place = broken.host("beta").folder / "state/containers"
    assert wait_until(lambda: not broken.find("beta", "c") and not mounts_below(place)), mounts_below(place)
    assert talk.run("answer = 1") == 1
    broken.migrate("c", "alpha", "beta")
    assert talk.run(FILL) == ENOSPC
    talk.close()


def mounts_below(folder: Path) -> list[str]:
    """Return what is mounted below a folder."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [place for line in file if (place := line.split()[4]).startswith(f"{folder}/")]

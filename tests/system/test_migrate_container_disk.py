# SPDX-License-Identifier: Apache-2.0
"""A container with a disk of its own moves, is written down and read again: the limit goes along, and holds there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.kernel import loop
from insula.model.errors import DiskFull, InsulaError
from two_hosts import TENANT, Conversation, Counter, Pair, wait_until

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


def is_gone(folder: Path) -> bool:
    return not folder.exists() and loop.find(str(folder / "disk.img")) is None


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
        left = folder_of(pair, source)
        assert os.path.ismount(left / "disk")
        pair.migrate("c", source, target)
        counter.wait_for_more()
        assert os.path.ismount(folder_of(pair, target) / "disk")
        assert wait_until(lambda left=left: is_gone(left)), [*left.glob("*")]
        talk.run(f"held.write('{target}'); held.flush()")
        assert talk.run("answer = sum() == first") is True
        assert talk.run(FILL) == ENOSPC
    assert talk.run("answer = open('/srv/held').read()") == "betaalpha"
    counter.finish()
    talk.close()
    left = folder_of(pair, "alpha")
    pair.remove("c")
    assert wait_until(lambda: is_gone(left))


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

# SPDX-License-Identifier: Apache-2.0
"""A container moves between two hosts: what goes with it, and what refuses it before anything stops."""

from collections.abc import Iterator

import msgspec
import pytest

from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.image.host import HOST_IMAGE
from insula.kernel.netlink import namespace_entered
from insula.migrate.wire import Wire
from insula.model.errors import (
    HostNotFound,
    IncompatibleCpu,
    InsulaError,
    MigrationFailed,
    NameTaken,
    NetworkNotFound,
    TargetFull,
    TargetUnreachable,
    Unsupported,
)
from insula.model.migration import VERSION, Accept, Offer
from insula.model.record import ContainerRecord
from insula.runtime.store import Store
from two_hosts import Conversation, Counter, Pair, show_log


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield module_pair
    for name in ("c", "files"):
        module_pair.remove(name)


def test_three_times_there_and_back_under_a_counting_client(pair: Pair) -> None:
    address = pair.run("walker")
    counter = Counter(pair.world, address)
    counter.wait_for_more()
    for _ in range(3):
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            pair.migrate("walker", source, target)
            assert pair.find(source, "walker") is None
            assert pair.status(target, "walker") == "running"
            counter.wait_for_more()
    assert counter.finish() > 100
    pair.remove("walker")


def test_a_silent_one_is_found_after_it_has_come_back(pair: Pair) -> None:
    """A bridge that has learned its hardware address out on the uplink would look for it there."""
    address = pair.run("c")
    counter = Counter(pair.world, address)
    counter.wait_for_more()
    counter.finish()
    for source, target in (("alpha", "beta"), ("beta", "alpha")):
        pair.migrate("c", source, target)
    assert "bind: No such device" not in show_log(pair)
    again = Conversation(pair.world, address)
    assert again.count() > 0
    again.close()


def test_a_log_that_cannot_be_read_does_not_travel_and_the_move_has_succeeded_all_the_same(
    pair: Pair,
) -> None:
    address = pair.run("c")
    container = pair.find("alpha", "c")
    assert container is not None
    older = pair.host("alpha").folder / "state/containers" / container["id"] / "log.1"
    older.mkdir()  # as a disk that gives an error: EISDIR
    pair.migrate("c", "alpha", "beta")
    assert pair.find("alpha", "c") is None
    after = Conversation(pair.world, address)
    assert after.count() > 0
    after.close()


FLIPPING = """
import os, threading, time
kept, nothing = os.dup(1), os.open('/dev/null', os.O_WRONLY)
def flip():
    while True:
        for each in (nothing, kept):
            os.dup2(each, 1)
            time.sleep(0.002)
threading.Thread(target=flip, daemon=True).start()
"""


def test_whose_standard_output_is_another_by_the_time_of_the_freeze(pair: Pair) -> None:
    """The target's CRIU was asked ahead for what standard output was then."""
    talk = Conversation(pair.world, pair.run("c", system=True))
    assert talk.run(FLIPPING) is None
    for _ in range(3):
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            pair.migrate("c", source, target)
            assert talk.run("answer = os.readlink(f'/proc/self/fd/{kept}')").startswith("pipe:")
    talk.close()


FILES_MADE = """
import shutil
os.unlink('/etc/debian_version')
shutil.rmtree('/etc/skel'); os.mkdir('/etc/skel'); open('/etc/skel/only', 'w').close()
os.makedirs('/srv/d', exist_ok=True)
open('/srv/d/a', 'w').write('linked'); os.link('/srv/d/a', '/srv/d/b')
os.setxattr('/srv/d/a', 'user.insula', b'kept')
os.chown('/srv/d/a', 1234, 4321)
sparse = open('/srv/d/sparse', 'wb'); sparse.seek(1 << 28); sparse.write(b'end'); sparse.close()
os.symlink('a', '/srv/d/link')
held = open('/srv/d/held', 'w+')
"""
FILES_KEPT = {
    "a whiteout": "not os.path.exists('/etc/debian_version')",
    "an opaque folder": "os.listdir('/etc/skel') == ['only']",
    "hard links": "os.stat('/srv/d/a').st_ino == os.stat('/srv/d/b').st_ino",
    "xattrs": "os.getxattr('/srv/d/a', 'user.insula') == b'kept'",
    "owners as the container sees them": "os.stat('/srv/d/a').st_uid == 1234 and os.stat('/srv/d/a').st_gid == 4321",
    "holes": "os.stat('/srv/d/sparse').st_size == (1 << 28) + 3 and os.stat('/srv/d/sparse').st_blocks < 4096",
    "symbolic links": "os.readlink('/srv/d/link') == 'a'",
    "open files": "held.write('more') == 4 and held.flush() is None and open('/srv/d/held').read().startswith('more')",
    "the volume": "open('/data/v').read() == 'volume'",
}


def test_files_and_owners_move_into_the_other_hosts_range(pair: Pair) -> None:
    mounts = [{"kind": "volume", "source": "data", "target": "/data"}]
    talk = Conversation(pair.world, pair.run("files", mounts=mounts))
    assert talk.run(FILES_MADE + "open('/data/v', 'w').write('volume')") is None
    before = pair.find("alpha", "files")
    moved = pair.migrate("files", "alpha", "beta")
    assert moved["moved_bytes"] < 256 << 20, "holes were sent"
    after = pair.find("beta", "files")
    assert before is not None and after is not None
    assert after["uid_base"] != before["uid_base"]
    with open(f"/proc/{after['pid']}/uid_map", encoding="ascii") as file:
        assert file.read().split() == ["0", str(after["uid_base"]), "65536"]
    for name, kept in FILES_KEPT.items():
        assert talk.run(f"answer = {kept}") is True, name
    assert not pair.traces("alpha", str(before["id"]))
    pair.migrate("files", "beta", "alpha")
    for name, kept in FILES_KEPT.items():
        assert talk.run(f"answer = {kept}") is True, f"back again: {name}"
    talk.close()
    pair.remove("files")


def refused(pair: Pair, kind: type[InsulaError], words: str) -> None:
    """A move of `c` is refused, and nobody notices."""
    found = pair.find("alpha", "c")
    assert found is not None
    counter = Counter(pair.world, found["attachment"]["address"])
    counter.wait_for_more()
    with pytest.raises(kind, match=words):
        pair.migrate("c", "alpha", "beta")
    counter.wait_for_more()
    assert pair.status("alpha", "c") == "running"
    assert counter.longest_gap_s < 5.0, "it stood still"
    counter.finish()


@pytest.fixture
def running(pair: Pair) -> Iterator[Pair]:
    pair.run("c")
    yield pair
    pair.remove("c")


def test_an_unknown_host_is_refused(running: Pair) -> None:
    with pytest.raises(HostNotFound):
        running.migrate("c", "alpha", "gamma")


def test_a_name_that_is_taken_there_is_refused(running: Pair) -> None:
    running.run("c", host="beta")
    refused(running, NameTaken, "a container of that name")


def test_an_address_that_is_taken_there_is_refused(running: Pair) -> None:
    found = running.find("alpha", "c")
    assert found is not None
    body = {"image": "host", "name": "holder", "network": "lan", "address": found["attachment"]["address"]}
    running.client("beta").call("POST", "/v1/containers", body={**body, "command": ["/bin/true"]})
    refused(running, InsulaError, found["attachment"]["address"])
    running.remove("holder")


def test_a_network_that_is_missing_or_another_there_is_refused(pair: Pair) -> None:
    for subnet in ("", "10.55.2.0/24"):
        pair.client("alpha").call("POST", "/v1/networks", body={"name": "own", "subnet": "10.55.1.0/24"})
        if subnet:
            pair.client("beta").call("POST", "/v1/networks", body={"name": "own", "subnet": subnet})
        wish = {"image": "host", "name": "n", "network": "own", "command": ["/bin/sleep", "60"]}
        pair.client("alpha").call("POST", "/v1/containers", body=wish)
        pair.client("alpha").call("POST", "/v1/containers/n/start")
        with pytest.raises(NetworkNotFound):
            pair.migrate("n", "alpha", "beta")
        assert pair.status("alpha", "n") == "running"
        pair.remove("n")
        pair.client("alpha").call("DELETE", "/v1/networks/own")
        if subnet:
            pair.client("beta").call("DELETE", "/v1/networks/own")


def test_a_volume_that_exists_there_is_refused_and_kept(pair: Pair) -> None:
    pair.run("c", mounts=[{"kind": "volume", "source": "data", "target": "/data"}])
    pair.client("beta").call("POST", "/v1/volumes", body={"name": "data"})
    refused(pair, NameTaken, "volume `data`")
    assert [each["name"] for each in pair.client("beta").get("/v1/volumes")] == ["data"]
    pair.remove("c")


def test_an_unreachable_target_is_refused(running: Pair) -> None:
    running.kill_daemon("beta")
    refused(running, TargetUnreachable, "cannot reach")
    running.restart("beta")


BAD_OFFERS: tuple[tuple[dict[str, object], type[InsulaError], str], ...] = (
    ({"processor_flags": ("invented",)}, IncompatibleCpu, "lacks invented"),
    ({"version": VERSION + 1}, MigrationFailed, "speaks version"),
    ({"criu_version": "9.0"}, Unsupported, "CRIU is"),
    ({"disk_bytes": 1 << 60}, TargetFull, "of disk"),
    ({"memory_bytes": 1 << 50}, TargetFull, "of memory"),
    ({"host_identity": "another"}, MigrationFailed, "its host's own files"),
)


@pytest.mark.parametrize(("change", "kind", "words"), BAD_OFFERS)
def test_an_offer_that_cannot_end_well_is_refused_over_the_wire(
    pair: Pair, change: dict[str, object], kind: type[InsulaError], words: str
) -> None:
    body = {"image": "host", "name": "crafted", "network": "none", "command": ["/bin/true"]}
    pair.client("alpha").call("POST", "/v1/containers", body=body)
    found = pair.find("alpha", "crafted")
    pair.remove("crafted")
    record = msgspec.convert(found, ContainerRecord)
    offer = Offer(
        version=VERSION, record=record, image=HOST_IMAGE, criu_version="4.0", kernel_release="6", disk_bytes=0,
        memory_bytes=0,
    )  # fmt: skip
    state = pair.host("alpha").folder / "state"
    store = Store(state / "db.sqlite")
    peers = PairedHosts(store, Pki(state / "pki", name="alpha"))
    with namespace_entered(pair.host("alpha").network):
        wire = Wire(peers.open(peers.find("beta")))
    try:
        wire.send(msgspec.structs.replace(offer, **change))
        with pytest.raises(kind, match=words):
            wire.expect(Accept)
    finally:
        wire.close()
        store.close()
    assert pair.find("beta", "crafted") is None
    assert not pair.traces("beta", record.id)

# SPDX-License-Identifier: Apache-2.0
"""A container moves between disks of tenants, and into one that is too small for it."""

from collections.abc import Iterator

import pytest

from insula.model.errors import InsulaError
from two_hosts import TENANT, Conversation, Counter, Pair, start_pair

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """What stays is counted around the module."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    for made in start_pair():
        for name in ("alpha", "beta"):
            wish = {"name": TENANT, "limits": {"disk": 128 * MIB}}
            made.client(name).call("POST", "/v1/tenants", body=wish)
        yield made


def test_files_in_rounds_from_disk_to_disk(pair: Pair) -> None:
    mounts = [{"kind": "volume", "source": "data", "target": "/d"}]
    address = pair.run("mover", mounts=mounts)
    talk, counter = Conversation(pair.world, address), Counter(pair.world, address)
    talk.run(
        "open('/d/old', 'w').write('x' * (8 << 20)); open('/srv/deep', 'w').write('y'); held = open('/d/held', 'w')"
    )
    talk.run("os.mkfifo('/srv/pipe'); os.link('/srv/deep', '/srv/twin'); os.unlink('/etc/issue')")
    counter.wait_for_more()
    for source, target in (("alpha", "beta"), ("beta", "alpha")):
        pair.migrate("mover", source, target)
        counter.wait_for_more()
        state = pair.host(target).folder / "state"
        assert (state / "containers" / str(pair.find(target, "mover")["id"])).is_symlink()  # type: ignore[index]
        assert (state / "volumes" / TENANT).is_symlink()
        assert talk.run("answer = (len(open('/d/old').read()), os.stat('/srv/deep').st_nlink, os.path.exists('/etc/issue'))") == [
            8 * MIB, 2, False,
        ]  # fmt: skip
        talk.run(f"held.write('{target}'); held.flush(); answer = open('/d/held').read()")
    assert talk.run("answer = open('/d/held').read()") == "betaalpha"
    counter.finish()
    talk.close()
    pair.remove("mover")
    for name in ("alpha", "beta"):
        disk = pair.host(name).folder / "state/tenants" / TENANT / "disk"
        assert not [*disk.glob("containers/*"), *disk.glob("volumes/*")]


def test_a_disk_that_is_too_small_refuses_before_anything_stops(pair: Pair) -> None:
    pair.client("beta").call("PATCH", f"/v1/tenants/{TENANT}", body={"limits": {"disk": 64 * MIB}})
    address = pair.run("large")
    talk = Conversation(pair.world, address)
    talk.run("open('/srv/large', 'wb').write(os.urandom(100 << 20)); os.sync()")
    with pytest.raises(InsulaError, match="disk"):
        pair.migrate("large", "alpha", "beta")
    assert pair.status("alpha", "large") == "running"
    assert talk.run("answer = 1") == 1
    talk.close()
    pair.remove("large")

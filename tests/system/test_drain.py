# SPDX-License-Identifier: Apache-2.0
"""A host is emptied, ended, started again and filled again; clients of what runs on it notice nothing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from insula.client import operations
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.kernel.netlink import namespace_entered
from insula.migrate.recall import recall
from insula.model.errors import ContainerNotFound, MigrationFailed, TargetUnreachable
from insula.runtime.store import Store
from two_hosts import Counter, Pair, show_log

NAMES = ("one", "two", "three")


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield module_pair
    for name in NAMES:
        module_pair.remove(name)


def act(pair: Pair, verb: str, **wish: object) -> dict[str, Any]:
    """Do it on alpha and wait for its end."""
    client = pair.client("alpha")
    last = client.call("POST", f"/v1/host/{verb}", body=wish or None)
    for record in operations.follow(client, last):
        last = record
    if (error := operations.failure(last)) is not None:
        raise error
    return last["result"]


def test_a_host_is_emptied_started_again_and_filled_again(pair: Pair) -> None:
    counters = [Counter(pair.world, pair.run(name)) for name in NAMES]
    planned = pair.client("alpha").call("POST", "/v1/host/drain", body={"plan": True})
    assert [(each["name"], each["target"]) for each in planned] == [(name, "beta") for name in sorted(NAMES)]
    assert act(pair, "drain") == {"moved": 3}
    assert [pair.status("beta", name) for name in NAMES] == ["running"] * 3
    assert [pair.find("alpha", name) for name in NAMES] == [None] * 3
    pair.restart("alpha")
    for each in counters:
        each.wait_for_more()
    assert act(pair, "undrain") == {"moved": 3}
    assert [pair.status("alpha", name) for name in NAMES] == ["running"] * 3
    for each in counters:
        each.wait_for_more()
        assert each.finish() > 0
    for host in ("alpha", "beta"):
        assert " warning " not in pair.host(host).log.read_text(), show_log(pair)
    assert act(pair, "undrain") == {"moved": 0}


def test_what_comes_back_may_stand_still_no_longer_than_is_said(pair: Pair) -> None:
    pair.run("one")
    assert act(pair, "drain") == {"moved": 1}
    with pytest.raises(MigrationFailed, match="within 1 ms"):
        act(pair, "undrain", max_pause_ms=1)
    assert pair.status("beta", "one") == "running"
    assert act(pair, "undrain", max_pause_ms=60_000) == {"moved": 1}
    assert pair.status("alpha", "one") == "running"


def test_one_that_cannot_move_stays_and_is_named(pair: Pair) -> None:
    pair.run("one")
    pair.run("two", host="beta")
    pair.client("beta").call("POST", "/v1/containers/two/rename", body={"name": "one"})
    with pytest.raises(MigrationFailed, match=r"0 moved, 1 not; `one` stays: .*container of that name"):
        act(pair, "drain")
    assert pair.status("alpha", "one") == "running"


class Silent:
    def message(self, text: str) -> None:
        """Nobody listens."""


def test_one_that_is_paused_stays_and_is_named(pair: Pair) -> None:
    pair.run("one")
    pair.run("two")
    pair.client("alpha").call("POST", "/v1/containers/one/pause")
    with pytest.raises(MigrationFailed, match="1 moved, 1 not; `one` stays: it is paused"):
        act(pair, "drain")
    assert pair.status("alpha", "one") == "paused"
    pair.client("alpha").call("POST", "/v1/containers/one/unpause")
    pair.remove("two")
    assert act(pair, "undrain") == {"moved": 0}


def test_only_whence_it_came_it_can_be_called_back(pair: Pair) -> None:
    pair.run("two", host="beta")
    identifier = (pair.find("beta", "two") or {})["id"]
    state = pair.host("alpha").folder / "state"
    store = Store(state / "db.sqlite")
    peers = PairedHosts(store, Pki(state / "pki", name="alpha"))
    try:
        with namespace_entered(pair.host("alpha").network), pytest.raises(ContainerNotFound):
            recall(peers, host="beta", container=identifier, reporter=Silent())
    finally:
        store.close()
    assert pair.status("beta", "two") == "running"


def test_without_a_host_that_answers_nothing_moves(pair: Pair) -> None:
    pair.run("one")
    with pair.cut(), pytest.raises(TargetUnreachable):
        act(pair, "drain", to=["beta"])
    assert pair.status("alpha", "one") == "running"


def test_a_host_is_emptied_of_everybodys_containers(pair: Pair) -> None:
    theirs = {"tenant": "uid64711"}
    client = pair.client("alpha")
    wish = {"image": "host", "name": "theirs", "command": ["sleep", "1000"], "network": "none"}
    made = client.call("POST", "/v1/containers", query=theirs, body=wish)["id"]
    client.call("POST", f"/v1/containers/{made}/start", query=theirs)
    try:
        assert act(pair, "drain") == {"moved": 1}
        assert act(pair, "undrain") == {"moved": 1}
        assert client.get(f"/v1/containers/{made}", query=theirs)["status"] == "running"
    finally:
        for name in ("alpha", "beta"):
            with contextlib.suppress(ContainerNotFound):
                pair.client(name).call("DELETE", f"/v1/containers/{made}", query={**theirs, "force": "1"})

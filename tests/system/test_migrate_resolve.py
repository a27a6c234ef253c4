# SPDX-License-Identifier: Apache-2.0
"""`insula migrate --resolve`: an administrator decides about a container whose other host does not answer; and that host
learns of it when it returns after all.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.migrate.fault import Point
from insula.model.errors import InsulaError, WrongState
from two_hosts import Conversation, Counter, Pair, mended_after, show_log, wait_until


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


def resolve(pair: Pair, host: str, decision: str) -> None:
    """Decide as soon as there is something to decide."""

    def is_decided() -> bool:
        try:
            pair.client(host).call("POST", "/v1/containers/c/resolve", body={"decision": decision})
        except WrongState:
            return False
        return True

    assert wait_until(is_decided), show_log(pair)


class InDoubt:
    """A container whose source has committed and whose target, beta, is gone before it heard of it."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        gate = folder / "gate"
        os.mkfifo(gate)
        pair.restart("alpha", fault=f"{Point.SOURCE_COMMITTED}=wait:{gate}")
        volume = {"kind": "volume", "source": "data", "target": "/data"}
        self.address = pair.run("c", mounts=[volume])
        self.counter = Counter(pair.world, self.address)
        self.counter.wait_for_more()
        self.id = str((pair.find("alpha", "c") or {})["id"])
        self.mover = threading.Thread(target=self._move)
        self.mover.start()
        reached = os.open(gate, os.O_WRONLY)
        pair.kill_daemon("beta")
        os.close(reached)

    def _move(self) -> None:
        try:
            self.pair.migrate("c", "alpha", "beta")
        except InsulaError:
            pass

    def generation(self, host: str) -> int:
        return int((self.pair.find(host, "c") or {"generation": -1})["generation"])


def test_kept_by_the_source_it_runs_there_and_the_target_learns_that_it_has_lost(
    pair: Pair, tmp_path: Path
) -> None:
    case = InDoubt(pair, tmp_path)
    resolve(pair, "alpha", "keep")
    case.mover.join()
    case.counter.wait_for_more()
    assert pair.status("alpha", "c") == "running"
    pair.restart("beta")
    assert wait_until(lambda: pair.find("beta", "c") is None), show_log(pair)
    assert wait_until(lambda: not pair.traces("beta", case.id)), pair.traces("beta", case.id)
    case.counter.wait_for_more()
    case.counter.finish()


def test_given_up_by_the_source_nothing_of_it_stays_there(pair: Pair, tmp_path: Path) -> None:
    case = InDoubt(pair, tmp_path)
    resolve(pair, "alpha", "give-up")
    case.mover.join()
    case.counter.abandon()
    assert pair.find("alpha", "c") is None
    assert wait_until(lambda: not pair.traces("alpha", case.id)), pair.traces("alpha", case.id)


class Holding:
    """A container that the target, beta, holds, and whose source is gone: before its commit, or right after."""

    def __init__(self, pair: Pair, *, point: Point) -> None:
        self.pair = pair
        pair.restart("alpha", fault=f"{point}=kill")
        volume = {"kind": "volume", "source": "data", "target": "/data"}
        self.address = pair.run("c", mounts=[volume])
        self.counter = Counter(pair.world, self.address)
        self.counter.wait_for_more()
        self.id = str((pair.find("alpha", "c") or {})["id"])
        with pytest.raises((InsulaError, OSError)):
            pair.migrate("c", "alpha", "beta")
        pair.wait_killed("alpha")


@pytest.mark.parametrize("point", [Point.SOURCE_COMMITTED, Point.SOURCE_HELD])
def test_kept_by_the_target_it_runs_there_and_the_source_drops_its_own(pair: Pair, point: Point) -> None:
    case = Holding(pair, point=point)
    resolve(pair, "beta", "keep")
    assert wait_until(lambda: pair.status("beta", "c") == "running"), show_log(pair)
    case.counter.abandon()
    pair.restart("alpha")
    assert wait_until(lambda: pair.find("alpha", "c") is None), (pair.find("alpha", "c"), show_log(pair))
    assert wait_until(lambda: not pair.traces("alpha", case.id)), pair.traces("alpha", case.id)
    talk = Conversation(pair.world, case.address)
    assert talk.count() > 0
    talk.close()
    assert pair.status("beta", "c") == "running"


def test_given_up_by_the_target_the_source_takes_it_back(pair: Pair) -> None:
    case = Holding(pair, point=Point.SOURCE_COMMITTED)
    resolve(pair, "beta", "give-up")
    assert wait_until(lambda: pair.find("beta", "c") is None), show_log(pair)
    pair.restart("alpha")
    assert wait_until(lambda: pair.status("alpha", "c") == "running"), show_log(pair)
    case.counter.wait_for_more()
    case.counter.finish()
    assert not pair.traces("beta", case.id)


def test_what_is_not_in_doubt_is_not_resolved(pair: Pair) -> None:
    pair.run("c")
    with pytest.raises(WrongState):
        pair.client("alpha").call("POST", "/v1/containers/c/resolve", body={"decision": "keep"})

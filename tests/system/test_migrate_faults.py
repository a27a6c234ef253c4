# SPDX-License-Identifier: Apache-2.0
"""A migration that fails: exactly one copy runs, its connections live, nothing half-made stays.

A choice: every fault at every point is `make faults` (`tests/faults/`).

The faults are those of `migrate/fault.py`, kills from outside, and a cut cable.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from faults.strike import spawners
from insula.kernel.netlink import namespace_entered
from insula.migrate.fault import OF_PULLS, Point
from insula.model.errors import InsulaError
from insula.network.bridge import interface_name
from insula.runtime import callers
from insula.runtime.fault import Note
from two_hosts import Counter, Pair, mended_after, show_log, wait_until

#: Of the points before the commit.
FAILS_AT = (Point.TARGET_RESERVED, Point.TARGET_LAST_PAGES, Point.TARGET_HELD, Point.SOURCE_HELD)
TARGET_KILLED_AT = (Point.TARGET_PAGES, Point.TARGET_HELD)
SOURCE_KILLED_AT = (Point.SOURCE_ROUND, Point.SOURCE_DUMPED)
REACH_S = 60.0
MEET_S = 20.0
"""Less than the wire waits for an answer."""


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


class Case:
    """One container with a client, on alpha, and what must hold after a fault."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        volume = {"kind": "volume", "source": "data", "target": "/data"}
        self.address = pair.run("c", mounts=[volume])
        self.counter = Counter(pair.world, self.address)
        self.counter.wait_for_more()
        self.error: InsulaError | None = None
        self.mover = threading.Thread(target=self.try_to_move)
        record = pair.find("alpha", "c")
        assert record is not None
        self.id = str(record["id"])

    def try_to_move(self) -> InsulaError | None:
        try:
            self.pair.migrate("c", "alpha", "beta")
        except InsulaError as error:
            self.error = error
        return self.error

    def move_up_to(self, gate: "Gate") -> int:
        """Begin a move and wait until it stands at the gate.  Returns: the descriptor that lets it on when it is closed."""
        self.mover.start()
        return gate.wait_reached()

    def check_only_on(self, here: str, *, not_on: str) -> None:
        """Exactly one copy, running and heard, with its connection; nothing of it on the other host."""
        pair = self.pair
        assert wait_until(lambda: pair.status(here, "c") == "running"), (pair.find(here, "c"), show_log(pair))
        self.counter.wait_for_more()
        assert wait_until(lambda: pair.find(not_on, "c") is None), (pair.find(not_on, "c"), show_log(pair))
        assert wait_until(lambda: not pair.traces(not_on, self.id)), pair.traces(not_on, self.id)
        self.counter.finish()

    def wait_killed(self, host: str) -> None:
        try:
            self.pair.wait_killed(host)
        except subprocess.TimeoutExpired:
            pytest.fail(f"insulad of {host} was not killed: {self.error}\n{show_log(self.pair)}")


def set_fault(pair: Pair, point: Point, action: str) -> str:
    host = "alpha" if point.startswith("source") else "beta"
    pair.restart(host, fault=f"{point}={action}")
    return host


@pytest.mark.parametrize("point", FAILS_AT)
def test_a_step_that_fails_before_the_commit_lets_the_source_run_on(pair: Pair, point: Point) -> None:
    set_fault(pair, point, "fail")
    case = Case(pair)
    error = case.try_to_move()
    assert error is not None and "fault" in error.message, error
    case.check_only_on("alpha", not_on="beta")


@pytest.mark.parametrize("point", TARGET_KILLED_AT)
def test_a_target_killed_before_the_commit_lets_the_source_run_on(pair: Pair, point: Point) -> None:
    set_fault(pair, point, "kill")
    case = Case(pair)
    assert case.try_to_move() is not None
    pair.wait_killed("beta")
    case.counter.wait_for_more()
    pair.restart("beta")
    case.check_only_on("alpha", not_on="beta")


@pytest.mark.parametrize("point", SOURCE_KILLED_AT)
def test_a_source_killed_before_the_commit_thaws_it_at_its_next_start(pair: Pair, point: Point) -> None:
    set_fault(pair, point, "kill")
    case = Case(pair)
    assert case.try_to_move() is not None
    pair.wait_killed("alpha")
    pair.restart("alpha")
    case.check_only_on("alpha", not_on="beta")


@pytest.mark.parametrize("point", [Point.SOURCE_COMMITTED])
def test_a_source_killed_after_the_commit_never_thaws_it(pair: Pair, point: Point) -> None:
    set_fault(pair, point, "kill")
    case = Case(pair)
    assert case.try_to_move() is not None
    pair.wait_killed("alpha")
    pair.restart("alpha")
    case.check_only_on("beta", not_on="alpha")


def test_a_target_killed_before_it_let_it_run_gives_it_back(pair: Pair) -> None:
    set_fault(pair, Point.TARGET_COMMITTED, "kill")
    case = Case(pair)
    case.mover.start()
    case.wait_killed("beta")
    pair.restart("beta")
    case.mover.join()
    assert case.error is not None and "runs here" in case.error.message
    case.check_only_on("alpha", not_on="beta")


@pytest.mark.parametrize("point", [Point.TARGET_RESTORED])
def test_a_target_killed_after_it_ran_finds_it_running(pair: Pair, point: Point) -> None:
    set_fault(pair, point, "kill")
    case = Case(pair)
    case.mover.start()
    case.wait_killed("beta")
    pair.restart("beta")
    case.mover.join()
    case.check_only_on("beta", not_on="alpha")


def test_every_point_is_passed_by_a_move(pair: Pair, tmp_path: Path) -> None:
    wish = tmp_path / "wish"
    for host in pair.world.hosts:
        pair.restart(host, fault=f"@{wish}")
    case = Case(pair)
    assert case.try_to_move() is None, case.error
    assert set(Path(f"{wish}.passed").read_text().split()) == set(Point) - OF_PULLS | {Note.START}
    case.check_only_on("beta", not_on="alpha")


class Gate:
    """A point at which a daemon waits for the test."""

    def __init__(self, pair: Pair, point: Point, folder: Path) -> None:
        self._pair = pair
        self._path = folder / "gate"
        os.mkfifo(self._path)
        set_fault(pair, point, f"wait:{self._path}")

    def wait_reached(self) -> int:
        """Return a descriptor whose closing lets the daemon go on."""
        found: list[int] = []

        def is_reached() -> bool:
            with suppress(OSError):  # ENXIO: nobody reads
                found.append(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return bool(found)

        assert wait_until(is_reached, seconds=REACH_S), show_log(self._pair)
        return found[0]


@pytest.mark.parametrize("point", [Point.TARGET_HELD])
def test_a_cut_cable_before_the_commit_lets_the_source_run_on(
    pair: Pair, point: Point, tmp_path: Path
) -> None:
    gate = Gate(pair, point, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    with pair.cut():
        os.close(reached)
        case.mover.join()
        case.counter.wait_for_more()
        assert pair.status("alpha", "c") == "running"
    case.check_only_on("alpha", not_on="beta")


@pytest.mark.parametrize("point", [Point.SOURCE_COMMITTED])
def test_a_cable_cut_at_the_commit_leaves_it_frozen_until_the_hosts_meet_again(
    pair: Pair, point: Point, tmp_path: Path
) -> None:
    gate = Gate(pair, point, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    with pair.cut():
        os.close(reached)
        answers = case.counter.answers
        assert not wait_until(lambda: case.counter.answers > answers, seconds=10)
        assert case.mover.is_alive()
    case.mover.join()
    case.check_only_on("beta", not_on="alpha")


def test_two_hosts_that_ask_each_other_after_a_cut_do_not_wait_for_each_other(
    pair: Pair, tmp_path: Path
) -> None:
    """The target has lost the source and asks it; the source commits meanwhile, cannot say so, and asks the target."""
    gate = Gate(pair, Point.SOURCE_HELD, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    doubts = doubts_told(pair, "beta")
    with pair.cut():
        assert wait_until(lambda: doubts_told(pair, "beta") > doubts, seconds=MEET_S), show_log(pair)
        asked_before = questions_heard(pair, "alpha")
    assert wait_until(lambda: questions_heard(pair, "alpha") > asked_before), show_log(pair)
    os.close(reached)
    case.mover.join(MEET_S)
    assert not case.mover.is_alive(), show_log(pair)
    case.check_only_on("beta", not_on="alpha")


def doubts_told(pair: Pair, host: str) -> int:
    """Return how often that host has written that it does not know who owns a container; earlier tests wrote there too."""
    return pair.host(host).log.read_text().count("in doubt who owns")


def questions_heard(pair: Pair, host: str) -> int:
    """Return how many connections of other hosts were let in."""
    lines = (pair.host(host).folder / "state/audit.log").read_text().splitlines()
    return sum('"TLS"' in line for line in lines)


@pytest.mark.parametrize(
    ("point", "killed", "stays"),
    [
        pytest.param(Point.TARGET_HELD, "beta", "alpha", id="target lets the source run on"),
        pytest.param(Point.SOURCE_FROZEN, "alpha", "alpha", id="source leaves connections whole"),
        pytest.param(Point.SOURCE_DUMPED, "alpha", "beta", id="source, all is dumped, changes nothing"),
    ],
)
def test_a_killed_criu(pair: Pair, tmp_path: Path, *, point: Point, killed: str, stays: str) -> None:
    gate = Gate(pair, point, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    engines = pair.engines(killed)
    assert engines
    if killed == "beta":  # what a restore leaves in `/tmp` goes with its mounts
        assert {os.stat(f"/proc/{pid}/root/tmp").st_dev for pid in engines} - {os.stat("/tmp").st_dev}
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    os.close(reached)
    case.mover.join()
    case.check_only_on(stays, not_on="beta" if stays == "alpha" else "alpha")


def test_a_spawner_that_ends_right_after_a_restore_is_not_overlooked(pair: Pair, tmp_path: Path) -> None:
    """Between the restore and the note that it runs, another spawner is there already."""
    gate = Gate(pair, Point.TARGET_RESTORED, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    before = spawners(pair.host("beta"))
    for pid in before:
        with suppress(ProcessLookupError):  # a child of its, which has just ended
            os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: bool(set(spawners(pair.host("beta"))) - set(before))), show_log(pair)
    os.close(reached)
    case.mover.join()
    case.counter.abandon()
    assert wait_until(lambda: pair.status("beta", "c") == "exited"), pair.status("beta", "c")
    assert wait_until(lambda: pair.find("alpha", "c") is None), show_log(pair)


def test_a_source_that_takes_it_back_after_its_own_death_lets_callers_in(pair: Pair, tmp_path: Path) -> None:
    gate = Gate(pair, Point.SOURCE_COMMITTED, tmp_path)
    case = Case(pair)
    reached = case.move_up_to(gate)
    record = SimpleNamespace(id=case.id)
    with namespace_entered(pair.host("alpha").network):
        callers._close_door(record, interface=interface_name("alpha", case.id))
    pair.kill_daemon("alpha")
    pair.kill_daemon("beta")
    os.close(reached)
    case.mover.join()
    pair.restart("beta")
    pair.restart("alpha")
    assert wait_until(lambda: pair.status("alpha", "c") == "running"), show_log(pair)
    newcomer = Counter(pair.world, case.address)
    newcomer.abandon()
    case.counter.abandon()

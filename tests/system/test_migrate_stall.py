# SPDX-License-Identifier: Apache-2.0
"""A restore that does not go on: the target says why, or says nothing any more; the source, which stands, runs on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from demo import cleanup

from insula.migrate.fault import Point
from insula.model.errors import InsulaError
from two_hosts import Conversation, Counter, Pair, mended_after, show_log, wait_until

BALLAST = 96 << 20
LIMIT = 24 << 20


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


class Stalled:
    """A move whose target, beta, stands right before it restores."""

    def __init__(self, pair: Pair, folder: Path, *, setup: str = "") -> None:
        self.pair = pair
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        pair.restart("beta", fault=f"{Point.TARGET_RESTORE}=wait:{self._gate}")
        address = pair.run("c")
        if setup:
            talk = Conversation(pair.world, address)
            assert talk.run(setup) is None
            talk.close()
        self.counter = Counter(pair.world, address)
        self.counter.wait_for_more()
        self.id = str((pair.find("alpha", "c") or {})["id"])
        self.error = ""
        self._mover = threading.Thread(target=self._move)
        self._mover.start()
        self._reached = os.open(self._gate, os.O_WRONLY)

    def _move(self) -> None:
        try:
            self.pair.act("alpha", "c", "migrate", target="beta", max_pause_ms=60_000)
        except InsulaError as error:
            self.error = error.message

    def go_on(self) -> None:
        os.close(self._reached)
        self._mover.join()

    def check_source_runs(self) -> None:
        pair = self.pair
        self.counter.wait_for_more()
        assert pair.status("alpha", "c") == "running", show_log(pair)
        assert wait_until(lambda: pair.find("beta", "c") is None), show_log(pair)
        assert wait_until(lambda: not pair.traces("beta", self.id)), pair.traces("beta", self.id)
        self.counter.finish()


def test_a_restore_without_memory_is_given_up_by_the_kernels_own_word(pair: Pair, tmp_path: Path) -> None:
    # Shared memory is what CRIU itself must bring; private memory is filled in later.
    setup = f"import mmap; big = mmap.mmap(-1, {BALLAST}); big.write(os.urandom({BALLAST}))"
    case = Stalled(pair, tmp_path, setup=setup)
    groups = [path for path in cleanup.cgroups_named(case.id) if pair.host("beta").cgroup in path.parts]
    limits = [path / "memory.limit_in_bytes" for path in groups] + [path / "memory.max" for path in groups]
    limits = [path for path in limits if path.exists()]
    assert limits, groups
    for path in limits:
        path.write_text(str(LIMIT))
    case.go_on()
    assert "for want of memory" in case.error, (case.error, show_log(pair))
    case.check_source_runs()


def test_a_criu_that_does_nothing_is_given_up(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    engines = pair.engines("beta")
    assert engines
    for pid in engines:
        os.kill(pid, signal.SIGSTOP)
    case.go_on()
    assert "does not go on" in case.error, (case.error, show_log(pair))
    case.check_source_runs()


def test_a_target_that_says_nothing_is_given_up_and_undoes_its_part_when_it_wakes(
    pair: Pair, tmp_path: Path
) -> None:
    case = Stalled(pair, tmp_path)
    daemon = pair.host("beta").daemon
    assert daemon is not None
    with ExitStack() as woken:
        daemon.send_signal(signal.SIGSTOP)
        woken.callback(daemon.send_signal, signal.SIGCONT)
        case.go_on()
        assert "cannot hear the other host" in case.error, (case.error, show_log(pair))
        case.counter.wait_for_more()
    case.check_source_runs()

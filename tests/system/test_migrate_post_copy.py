# SPDX-License-Identifier: Apache-2.0
"""Post-copy: it runs on the target before its memory is there, and no fault of a host, a cable or a process shows it a zero."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo import cleanup

from faults.strike import fillers, spawners
from insula.client.operations import follow
from insula.migrate.fault import Point
from insula.model.errors import InsulaError, PauseTooLong, WrongState
from two_hosts import SERVER, Conversation, Counter, Pair, mended_after, show_log, wait_until

MEGABYTES = 320
FEWER = 160
"""Enough that some of it is still to come when the test strikes."""
START_S = 60.0

#: Serves as two_hosts.SERVER does, and holds memory whose every page is known by its number and by who wrote it last.
HOLDER = """
import mmap, struct, threading
memory = mmap.mmap(-1, MEGABYTES << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
PAGES = len(memory) // 4096
def page(number, salt): return struct.pack("<QQ", number, salt) * 256
salts = [7] * PAGES
for number in range(PAGES): memory[number * 4096:number * 4096 + 4096] = page(number, 7)
writes = 0
def write():
    global writes
    while True:
        number = (writes * 40503) % PAGES
        memory[number * 4096:number * 4096 + 4096] = page(number, writes)
        salts[number] = writes
        writes += 1
        if writes % 64 == 0: threading.Event().wait(0.005)
def check():
    return sum(memory[n * 4096:n * 4096 + 4096] != page(n, salts[n]) for n in range(PAGES))
"""
WRITING = "threading.Thread(target=write, daemon=True).start()\n"


@pytest.fixture
def pair(module_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    for each in mended_after(module_pair):
        yield each
        wish_of(tmp_path).unlink(missing_ok=True)


def wish_of(folder: Path) -> Path:
    return folder / "wish"


class Case:
    """A container with much memory, a client that counts, and a move of it in a thread."""

    def __init__(self, pair: Pair, *, megabytes: int, program: str = "", **spec: object) -> None:
        self.pair = pair
        holder = HOLDER.replace("MEGABYTES", str(megabytes))
        self.address = pair.run("c", program=holder + program + SERVER, **spec)
        self.counter = Counter(pair.world, self.address)
        self.counter.wait_for_more()
        self.result: dict[str, object] = {}
        self.error: InsulaError | OSError | None = None
        self._mover = threading.Thread(target=self._move)
        record = pair.find("alpha", "c")
        assert record is not None
        self.id = str(record["id"])

    def _move(self) -> None:
        try:
            self.result = self.pair.act("alpha", "c", "migrate", target="beta", mode="post-copy")
        except (InsulaError, OSError) as error:
            self.error = error

    def begin(self) -> None:
        self._mover.start()

    def end(self) -> None:
        self._mover.join(60)
        assert not self._mover.is_alive(), show_log(self.pair)

    def check_memory(self) -> None:
        """Every page is as it must be, there, and nothing is left here."""
        conversation = Conversation(self.pair.world, self.address)
        assert conversation.run("answer = check()") == 0
        conversation.close()
        self.counter.wait_for_more()
        self.check_nothing_on("alpha")
        self.counter.finish()

    def check_nothing_on(self, host: str) -> None:
        pair = self.pair
        assert wait_until(lambda: pair.find(host, "c") is None), show_log(pair)
        assert wait_until(lambda: not pair.traces(host, self.id)), pair.traces(host, self.id)

    def check_ended_there(self, words: str) -> None:
        """It was killed before it saw a page that is not there, and says why; nothing waits for it any more."""
        assert wait_until(lambda: self.pair.status("beta", "c") == "exited"), show_log(self.pair)
        record = self.pair.find("beta", "c")
        assert record is not None and words in record["error"], record
        self.counter.abandon()
        assert wait_until(lambda: not fillers(self.pair.host("beta")))


class Stalled(Case):
    """A move whose memory comes no further: the container runs there, and some of it is here."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.wish = wish_of(folder)
        for host in pair.world.hosts:
            pair.restart(host, fault=f"@{self.wish}")
        super().__init__(pair, megabytes=FEWER)
        self.begin()
        assert wait_until(lambda: Point.SOURCE_RESUMED in self._passed(), seconds=START_S), show_log(pair)
        self.wish.write_text(f"{Point.SOURCE_PULL}=fail")
        asked = len(self._passed())
        assert wait_until(lambda: len(self._passed()) > asked), show_log(pair)
        assert pair.status("alpha", "c") == "moved", "all has come already"
        assert fillers(pair.host("beta"))

    def _passed(self) -> str:
        try:
            return Path(f"{self.wish}.passed").read_text()
        except FileNotFoundError:
            return ""

    def go_on(self) -> None:
        self.wish.unlink()

    def resolve(self, host: str, decision: str) -> None:
        """Decide, as soon as it is in doubt."""

        def is_decided() -> bool:
            try:
                body = {"decision": decision}
                self.pair.client(host).call("POST", "/v1/containers/c/resolve", body=body)
            except WrongState:
                return False
            return True

        assert wait_until(is_decided), show_log(self.pair)


def test_every_byte_follows_under_writes(pair: Pair) -> None:
    case = Case(pair, megabytes=MEGABYTES, program=WRITING)
    case.begin()
    case.end()
    assert case.error is None, (case.error, show_log(pair))
    assert case.result["tracker"] == "later"
    assert case.result["memory_bytes"] == 0, "some of it went before"
    case.check_memory()


def test_it_does_not_wait_for_what_has_not_come(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    record = pair.find("beta", "c")
    assert record is not None and record["owner"] == "beta"
    case.go_on()
    case.end()
    assert case.error is None, case.error
    case.check_memory()


def test_a_cut_cable_is_mended(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    with pair.cut():
        case.go_on()
        assert not wait_until(lambda: not fillers(pair.host("beta")), seconds=10), (
            "all has come by a cut cable"
        )
    case.end()
    assert case.error is None, case.error
    case.check_memory()


@pytest.mark.parametrize("killed", ["alpha", "beta"])
def test_an_insulad_that_is_killed_goes_on(pair: Pair, tmp_path: Path, killed: str) -> None:
    case = Stalled(pair, tmp_path)
    pair.kill_daemon(killed)
    case.go_on()
    pair.restart(killed)
    case.end()
    case.check_memory()


def test_a_target_that_is_stopped_while_its_insulad_is_dead_loses_nothing_else(
    pair: Pair, tmp_path: Path
) -> None:
    case = Stalled(pair, tmp_path)
    pair.kill_daemon("beta")
    for pid in spawners(pair.host("beta")):
        os.kill(pid, signal.SIGKILL)
    pair.restart("beta")
    case.go_on()
    case.end()
    case.check_ended_there("its spawner has ended")
    case.check_nothing_on("alpha")


def kill_host(pair: Pair, name: str) -> None:
    """Kill all that runs there."""
    pair.kill_daemon(name)
    cleanup.end_all(pair.host(name).processes)


def test_a_source_that_has_lost_it_ends_it_with_the_reason(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    kill_host(pair, "alpha")
    case.go_on()
    pair.restart("alpha")
    case.end()
    case.check_ended_there("its memory did not arrive: cannot give its memory: its processes have ended")
    case.check_nothing_on("alpha")


def test_a_source_that_never_returns_is_given_up(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    kill_host(pair, "alpha")
    case.resolve("beta", "keep")
    case.check_ended_there("of it are on host `alpha`, which an administrator has given up")
    pair.restart("alpha")
    case.end()
    case.check_nothing_on("alpha")


def test_given_back_it_runs_on_where_it_stood(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    with pair.cut():
        case.resolve("beta", "give-up")
        case.check_nothing_on("beta")
        case.counter.abandon()
    case.end()
    assert isinstance(case.error, InsulaError) and "it runs here" in case.error.message
    assert wait_until(lambda: pair.status("alpha", "c") == "running"), show_log(pair)
    conversation = Conversation(pair.world, case.address)
    assert conversation.run("answer = check()") == 0
    conversation.close()


def test_a_killed_filler_ends_it(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    for pid in fillers(pair.host("beta")):
        os.kill(pid, signal.SIGKILL)
    case.check_ended_there("its memory did not arrive")
    case.end()
    case.check_nothing_on("alpha")


def test_removed_there_nothing_is_kept_for_it(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    pair.client("beta").call("DELETE", "/v1/containers/c", query={"force": "1"})
    case.counter.abandon()
    case.end()
    case.check_nothing_on("alpha")
    case.check_nothing_on("beta")


def test_a_plan_tells_what_follows(pair: Pair) -> None:
    Case(pair, megabytes=FEWER).counter.finish()
    seen = pair.act("alpha", "c", "migrate", target="beta", mode="post-copy", plan=True)
    assert seen["verdict"].startswith("moves; ")
    assert int(seen["later_bytes"]) > FEWER << 20
    assert pair.status("alpha", "c") == "running"


def test_the_pause_is_kept_here_too(pair: Pair) -> None:
    case = Case(pair, megabytes=1, max_pause_ms=1)
    case.begin()
    case.end()
    assert isinstance(case.error, PauseTooLong), case.error
    case.counter.wait_for_more()
    case.counter.finish()


def test_a_drain_waits_for_what_still_needs_the_host(pair: Pair, tmp_path: Path) -> None:
    case = Stalled(pair, tmp_path)
    client = pair.client("alpha")
    operation = client.call("POST", "/v1/host/drain", body={})
    words: list[str] = []
    for now in follow(client, operation):
        words.append(now["progress"]["message"])
        if any("still needs this host" in each for each in words) and case.wish.exists():
            case.go_on()
    assert now["status"] == "done", now
    case.end()
    assert pair.find("alpha", "c") is None
    case.check_memory()

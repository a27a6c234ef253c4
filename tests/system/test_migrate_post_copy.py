# SPDX-License-Identifier: Apache-2.0
"""Post-copy: it runs on the target before its memory is there, and no fault of a host, a cable or a process shows it a zero."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from insula.model.errors import InsulaError
from two_hosts import SERVER, Conversation, Counter, Pair, mended_after, show_log, start_pair, wait_until

MEGABYTES = 320

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
""".replace("MEGABYTES", str(MEGABYTES))
WRITER = HOLDER + "threading.Thread(target=write, daemon=True).start()\n"


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Daemons are started anew within tests here: what stays is counted around the module."""


@pytest.fixture(scope="module")
def module_pair() -> Iterator[Pair]:
    yield from start_pair()


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield from mended_after(module_pair)


class Case:
    """A container with much memory, a client that counts, and a move of it in a thread."""

    def __init__(self, pair: Pair, *, program: str = HOLDER, **spec: object) -> None:
        self.pair = pair
        self.address = pair.run("c", program=program + SERVER, **spec)
        self.counter = Counter(pair.world, self.address)
        self.counter.wait_for_more()
        self.result: dict[str, object] = {}
        self.error: InsulaError | None = None
        self._mover = threading.Thread(target=self._move)
        record = pair.find("alpha", "c")
        assert record is not None
        self.id = str(record["id"])

    def _move(self) -> None:
        try:
            self.result = self.pair.act("alpha", "c", "migrate", target="beta", mode="post-copy")
        except InsulaError as error:
            self.error = error

    def begin(self) -> None:
        self._mover.start()

    def end(self) -> None:
        self._mover.join(60)
        assert not self._mover.is_alive(), show_log(self.pair)

    def wait_runs_there(self) -> None:
        assert wait_until(lambda: self.pair.status("beta", "c") == "running"), show_log(self.pair)

    def check_memory(self) -> None:
        """Every page is as it must be, there, and nothing is left here."""
        conversation = Conversation(self.pair.world, self.address)
        assert conversation.run("answer = check()") == 0
        conversation.close()
        self.counter.wait_for_more()
        assert wait_until(lambda: self.pair.find("alpha", "c") is None), show_log(self.pair)
        assert wait_until(lambda: not self.pair.traces("alpha", self.id)), self.pair.traces("alpha", self.id)
        self.counter.finish()

    def wait_killed_with(self, words: str) -> None:
        assert wait_until(lambda: self.pair.status("beta", "c") == "exited"), show_log(self.pair)
        record = self.pair.find("beta", "c")
        assert record is not None and words in record["error"], record
        self.counter.abandon()


def test_every_byte_follows_under_writes(pair: Pair) -> None:
    case = Case(pair, program=WRITER)
    case.begin()
    case.end()
    assert case.error is None, (case.error, show_log(pair))
    print(case.result)
    assert case.result["tracker"] == "later"
    assert int(str(case.result["memory_bytes"])) == 0, "none of it went before"
    case.check_memory()

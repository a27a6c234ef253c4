# SPDX-License-Identifier: Apache-2.0
"""A connection that is cut at any byte, a target that lies, a source that lies: refused with a reason, the container untouched,
nothing left.

All of it happens between two honest insulads, by a stranger who has the keys of both (`tests/relay.py`).
"""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from insula.daemon.pki import Pki
from insula.migrate.wire import MAX_PAYLOAD
from insula.model.errors import InsulaError
from insula.model.migration import Kind
from relay import TO_SOURCE, TO_TARGET, Frame, Lie, Relay, between, read_frame
from two_hosts import Counter, Pair, show_log, start_pair, wait_until

CUTS = 8
ANSWER_S = 20.0
SEED = 7
OTHER_LAYER = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def module_pair() -> Iterator[tuple[Pair, Relay]]:
    for pair in start_pair(is_paired=False):
        with between(pair) as relay:
            yield pair, relay


@pytest.fixture
def relay(module_pair: tuple[Pair, Relay]) -> Relay:
    _pair, relay = module_pair
    relay.be_honest()
    return relay


class Carried:
    """A container with a client on one connection, and what must hold whatever happens on the way."""

    def __init__(self, relay: Relay) -> None:
        self.pair = relay.pair
        volume = {"kind": "volume", "source": "data", "target": "/data"}
        address = self.pair.run("c", mounts=[volume])
        self.counter = Counter(self.pair.world, address)
        self.counter.wait_for_more()
        self.id = str((self.pair.find("alpha", "c") or {})["id"])

    def try_to_move(self) -> InsulaError | None:
        try:
            self.pair.migrate("c", "alpha", "beta")
        except InsulaError as error:
            return error
        return None

    def check_one_copy(self) -> str:
        """Exactly one copy that runs, with its connection, nothing on the other host.  Returns: where it is."""
        pair = self.pair

        def home() -> str:
            homes = [name for name in pair.world.hosts if pair.find(name, "c")]
            return homes[0] if len(homes) == 1 and pair.status(homes[0], "c") == "running" else ""

        assert wait_until(lambda: bool(home())), show_log(pair)
        here = home()
        other = "beta" if here == "alpha" else "alpha"
        assert wait_until(lambda: not pair.traces(other, self.id)), pair.traces(other, self.id)
        self.counter.wait_for_more(5)
        return here

    def bring_home(self) -> None:
        self.pair.migrate("c", "beta", "alpha")
        self.counter.wait_for_more(5)

    def finish(self) -> None:
        self.counter.finish()
        for host in self.pair.world.hosts.values():
            assert "Traceback" not in host.log.read_text(errors="replace"), show_log(self.pair)


@pytest.fixture(scope="module")
def carried(module_pair: tuple[Pair, Relay]) -> Iterator[Carried]:
    _pair, relay = module_pair
    relay.be_honest()
    case = Carried(relay)
    yield case
    case.finish()
    case.pair.remove("c")


@pytest.mark.parametrize("direction", [TO_TARGET, TO_SOURCE])
def test_a_connection_may_be_cut_at_any_byte(carried: Carried, relay: Relay, direction: str) -> None:
    case = carried
    assert case.try_to_move() is None
    length = relay.passed[direction]
    assert case.check_one_copy() == "beta"
    case.bring_home()
    chance = random.Random(f"{SEED} {direction}")
    # The end is where the decisions fall: a message has about a hundred bytes.
    places = [chance.randrange(length) for _ in range(CUTS // 2)]
    places += [max(0, length - chance.randrange(800)) for _ in range(CUTS // 2)]
    for place in places:
        relay.cut_after = {direction: place}
        error = case.try_to_move()
        relay.be_honest()
        assert error is None or error.code != "internal", (place, error, show_log(case.pair))
        if case.check_one_copy() == "beta":
            case.bring_home()


# -- lies


def at(direction: str, name: str, change: Lie) -> Callable[[], Lie]:
    return lambda: _at(direction, name, change)


def _at(direction: str, name: str, change: Lie) -> Lie:
    """Lie once, at the first message of that name (empty: at the first piece of a stream)."""
    is_told = False

    def lie(way: str, frame: Frame) -> list[Frame]:
        nonlocal is_told
        is_meant = frame.name == name if name else frame.kind not in (Kind.MESSAGE, Kind.END)
        if is_told or way != direction or not is_meant:
            return [frame]
        is_told = True
        return change(way, frame)

    return lie


def message(name: str, **fields: object) -> Frame:
    return Frame(Kind.MESSAGE, b"{}").changed(type=name, **fields)


@dataclass(frozen=True)
class Told:
    """A lie and how the one who hears it must call it."""

    what: str
    begin: Callable[[], Lie]
    code: str = "protocol_error"


def offer_with(**fields: object) -> Callable[[], Lie]:
    def change(_way: str, frame: Frame) -> list[Frame]:
        return [frame.changed(record={**frame.message["record"], **fields})]

    return at(TO_TARGET, "Offer", change)


def instead(direction: str, name: str, *frames: Frame) -> Callable[[], Lie]:
    return at(direction, name, lambda _way, _frame: list(frames))


def before(direction: str, name: str, *frames: Frame) -> Callable[[], Lie]:
    return at(direction, name, lambda _way, frame: [*frames, frame])


def changed(direction: str, name: str, **fields: object) -> Callable[[], Lie]:
    return at(direction, name, lambda _way, frame: [frame.changed(**fields)])


def first_file(name: str, size: int) -> Callable[[], Lie]:
    def change(_way: str, frame: Frame) -> list[Frame]:
        files = frame.message["files"]
        return [frame.changed(files=[[name or files[0][0], size or files[0][1]], *files[1:]])]

    return at(TO_TARGET, "Files", change)


PIECE = Frame(Kind.DATA, b"x" * 4096)
PAGES = {"pid": 1, "ranges": [[1 << 20, 1]]}
LIES_OF_A_SOURCE = (
    Told("another version", changed(TO_TARGET, "Offer", version=99), "migration_failed"),
    Told("an id that is a path", offer_with(id="../../../etc")),
    Told("a tenant that is a path", offer_with(tenant="../x")),
    Told("more memory than there is", changed(TO_TARGET, "Offer", memory_bytes=1 << 62), "target_full"),
    Told("memory beyond counting", changed(TO_TARGET, "Offer", memory_bytes=1 << 64), "target_full"),
    Told("a layer of somebody else", before(TO_TARGET, "Memory", message("Layer", digest=OTHER_LAYER))),
    Told("nothing that anybody knows", before(TO_TARGET, "Memory", message("Please"))),
    Told("no json", before(TO_TARGET, "Memory", Frame(Kind.MESSAGE, b"\xff{"))),
    Told("another kind of frame", before(TO_TARGET, "Memory", Frame(99, b""))),
    Told("a frame beyond the limit", instead(TO_TARGET, "", Frame(Kind.DATA, b"", claimed=MAX_PAYLOAD + 1))),
    Told("a second offer", at(TO_TARGET, "Memory", lambda _way, frame: [message("Offer"), frame])),
    Told("memory of no process", before(TO_TARGET, "Memory", message("Memory", **{**PAGES, "pid": 0}))),
    Told(
        "memory that cannot be",
        before(TO_TARGET, "Memory", message("Memory", pid=1, ranges=[[1 << 20, 1 << 60]])),
    ),
    Told(
        "addresses beyond counting",
        before(TO_TARGET, "Memory", message("Memory", pid=1, ranges=[[1 << 64, 1]])),
    ),
    Told("more pages than announced", at(TO_TARGET, "", lambda _way, frame: [frame, *[PIECE] * 300])),
    Told("fewer pages than announced", instead(TO_TARGET, "", PIECE)),
    Told(
        "zeros without end",
        before(TO_TARGET, "", *[Frame(Kind.ZEROS, (0xFFFFFFFF).to_bytes(4, "big"))] * 2),
    ),
    Told("a volume that was not offered", before(TO_TARGET, "Memory", message("FileRound", volume="../x"))),
    Told(
        "shared memory beyond counting",
        before(TO_TARGET, "Memory", message("SharedPages", area=1, pieces=[[0, 1 << 63]])),
    ),
    Told("an image of nothing", before(TO_TARGET, "Memory", message("SharedImage", area=4711))),
    Told("restore without a room", before(TO_TARGET, "Memory", message("Restore"))),
    Told("a room twice", at(TO_TARGET, "Prepare", lambda _way, frame: [frame, frame])),
    Told("commit before all is there", before(TO_TARGET, "Restore", message("Commit", generation=9))),
    Told("an image that is a path", first_file("../x", 0)),
    Told("an image beyond all room", first_file("", 1 << 62), "target_full"),
    Told("an image beyond counting", first_file("", 1 << 64), "target_full"),
    Told("an image cut short", first_file("", 1 << 22)),
)
LIES_OF_A_TARGET = (
    Told("a layer of somebody else", changed(TO_SOURCE, "Accept", missing_layers=[OTHER_LAYER])),
    Told("a layer that is a path", changed(TO_SOURCE, "Accept", missing_layers=["../../containers"])),
    Told("held before anything came", instead(TO_SOURCE, "Accept", message("Held"))),
    Told("no json", instead(TO_SOURCE, "Accept", Frame(Kind.MESSAGE, b"{"))),
    Told("a frame beyond the limit", instead(TO_SOURCE, "Accept", Frame(Kind.MESSAGE, b"", claimed=1 << 31))),
    Told("a stream instead of an answer", instead(TO_SOURCE, "Answer", PIECE)),
    Told("it runs, before it was asked to", instead(TO_SOURCE, "Held", message("Resumed"))),
    Told("pages of no process", before(TO_SOURCE, "Held", message("Missing", pages={"4711": [[65536, 1]]}))),
    Told(
        "pages that cannot be",
        before(TO_SOURCE, "Held", message("Missing", pages={"1": [[65536, 1 << 50]]})),
    ),
    Told("pages beyond counting", before(TO_SOURCE, "Held", message("Missing", pages={"1": [[1 << 64, 1]]}))),
    Told(
        "a refusal that nobody knows",
        instead(TO_SOURCE, "Accept", message("Refuse", code="x", message="y")),
        "x",
    ),
)


@pytest.mark.parametrize("told", LIES_OF_A_SOURCE, ids=lambda told: told.what)
def test_a_source_that_lies_is_refused(carried: Carried, relay: Relay, told: Told) -> None:
    check_refused(carried, relay, told)


@pytest.mark.parametrize("told", LIES_OF_A_TARGET, ids=lambda told: told.what)
def test_a_target_that_lies_is_refused(carried: Carried, relay: Relay, told: Told) -> None:
    check_refused(carried, relay, told)


def test_another_hosts_certificate_is_not_taken(carried: Carried, relay: Relay) -> None:
    relay.shows = "alpha"
    error = carried.try_to_move()
    relay.be_honest()
    assert error is not None and error.code == "denied", error
    assert carried.check_one_copy() == "alpha"


def test_who_is_not_paired_is_not_let_in(carried: Carried, relay: Relay, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "pki", name="gamma")
    stranger.trust(relay.pki("beta").certificate_pem)
    with pytest.raises(OSError), relay.open_target(stranger) as connection:
        connection.sendall(message("Question", container=carried.id, generation=1).encode())
        assert not connection.recv(1)
    assert carried.check_one_copy() == "alpha"


def test_what_was_said_once_is_not_believed_again(carried: Carried, relay: Relay) -> None:
    """All that the source has said in a move, said again: while the container is there, and when it has gone home."""
    said: list[Frame] = []

    def listen(way: str, frame: Frame) -> list[Frame]:
        if way == TO_TARGET:
            said.append(frame)
        return [frame]

    relay.lie = listen
    assert carried.try_to_move() is None
    relay.be_honest()
    assert carried.check_one_copy() == "beta"
    assert answers_to(relay, said) == ["Welcome", "Refuse"]
    assert carried.check_one_copy() == "beta"
    carried.bring_home()
    assert "Resumed" not in answers_to(relay, said)
    assert carried.check_one_copy() == "alpha"


def answers_to(relay: Relay, said: list[Frame]) -> list[str]:
    """Say all that to the target, and hang up.  Returns: the messages that it answers."""
    heard: list[str] = []
    with relay.open_target() as far, suppress(OSError):
        far.settimeout(ANSWER_S)
        for frame in said:
            far.sendall(frame.encode())
        socket.socket.shutdown(far, socket.SHUT_WR)
        while frame_heard := read_frame(far):
            heard.append(frame_heard.name)
    return heard


def check_refused(case: Carried, relay: Relay, told: Told) -> None:
    relay.lie = told.begin()
    error = case.try_to_move()
    relay.be_honest()
    assert error is not None, "believed"
    assert error.code == told.code, (error.code, error.message, show_log(case.pair))
    assert case.check_one_copy() == "alpha"

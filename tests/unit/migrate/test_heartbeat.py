# SPDX-License-Identifier: Apache-2.0
"""A source waits for a target that is at work, and not for one that is silent, dribbles or never comes to an end."""

import socket
import threading
from collections.abc import Iterator

import pytest

from insula.migrate import heartbeat
from insula.migrate.heartbeat import LEAST_SECONDS, MOST_SECONDS, Heart, Pages, await_held, held_within_s
from insula.migrate.wire import Wire
from insula.model.errors import Cancelled, MigrationFailed, ProtocolError
from insula.model.migration import Answer, Held, Missing, Restore, Working

FOR_EVER = 60.0


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Wire, Wire]]:
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(heartbeat, "HEARD_SECONDS", 1.0)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    near, far = socket.socketpair()
    source, target = Wire(near), Wire(far)
    yield source, target
    source.close()
    target.close()


def nothing() -> None:
    return


def no_pages(_pages: Pages) -> None:
    raise AssertionError("nothing is missing")


def wait(source: Wire, *, within_s: float = FOR_EVER) -> None:
    await_held(source, within_s=within_s, on_missing=no_pages, check=nothing)


def test_a_target_that_says_that_it_is_at_work_is_waited_for(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    heart = Heart(target)
    heart.start()
    thread = threading.Thread(target=wait, args=(source,))
    thread.start()
    target.expect(Restore)
    thread.join(3 * heartbeat.HEARD_SECONDS)
    assert thread.is_alive()
    heart.stop()
    target.send(Held())
    thread.join()


def test_a_silent_target_is_given_up(pair: tuple[Wire, Wire]) -> None:
    with pytest.raises(MigrationFailed, match="cannot hear"):
        wait(pair[0])


def test_a_target_that_is_at_work_for_ever_is_given_up(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    with Heart(target), pytest.raises(MigrationFailed, match="any longer"):
        wait(source, within_s=0.2)


def test_a_target_that_asks_for_pages_for_ever_is_given_up(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    asked: list[Pages] = []

    def send(pages: Pages) -> None:
        asked.append(pages)
        target.expect(Restore)
        target.send(Missing(pages=pages))

    target.send(Missing(pages={1: ((65536, 1),)}))
    with pytest.raises(MigrationFailed, match="any longer"):
        await_held(source, within_s=0.2, on_missing=send, check=nothing)
    assert asked


def test_a_cancel_is_heard_while_it_stands(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    target.send(Working(what="restore"))

    def cancelled() -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        await_held(source, within_s=FOR_EVER, on_missing=no_pages, check=cancelled)


def test_what_is_no_answer_is_refused(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    target.send(Answer())
    with pytest.raises(ProtocolError, match="Answer"):
        wait(source)


def test_a_heart_knows_that_nobody_hears_it(pair: tuple[Wire, Wire]) -> None:
    source, target = pair
    source.close()
    with Heart(target) as heart:
        heart.join()
        with pytest.raises(MigrationFailed):
            heart.check()


@pytest.mark.parametrize(
    ("max_pause_s", "seconds"),
    [(0.05, LEAST_SECONDS), (3.0, 30.0), (100.0, MOST_SECONDS), (float("inf"), MOST_SECONDS)],
)
def test_the_bound_follows_the_pause_that_is_allowed(max_pause_s: float, seconds: float) -> None:
    assert held_within_s(max_pause_s) == seconds

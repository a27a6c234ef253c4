# SPDX-License-Identifier: Apache-2.0
"""A decision reaches who waits for it; where nothing is in doubt, nothing is decided."""

import threading

from insula.model.spec import Resolution
from insula.runtime.doubt import Doubts


def test_without_doubt_nothing_is_decided() -> None:
    assert not Doubts().decide("c", Resolution.KEEP)


def test_who_waits_hears_the_decision_and_the_decider_that_it_was_followed() -> None:
    doubts, heard = Doubts(), []
    entered = threading.Event()

    def wait() -> None:
        with doubts.entered("c"):
            entered.set()
            heard.append(doubts.wait("c", seconds=20.0))

    waiter = threading.Thread(target=wait)
    waiter.start()
    entered.wait(20.0)
    assert doubts.decide("c", Resolution.GIVE_UP)
    assert doubts.wait_settled("c", seconds=20.0)
    waiter.join()
    assert heard == [Resolution.GIVE_UP]
    assert not doubts.decide("c", Resolution.KEEP)


def test_a_wait_ends_without_a_decision() -> None:
    doubts = Doubts()
    with doubts.entered("c"):
        assert doubts.wait("c", seconds=0.01) is None

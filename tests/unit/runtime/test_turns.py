# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom before a container is frozen."""

import threading
from contextlib import ExitStack

from insula.runtime import turns
from insula.runtime.turns import Turns
from waiting import DEADLINE_S


def test_one_after_the_other() -> None:
    taken = Turns(count=1)
    found: list[bool] = []

    def second() -> None:
        with taken.take() as has_waited:
            found.append(has_waited)

    other = threading.Thread(target=second)
    with taken.take() as has_waited:
        assert not has_waited
        other.start()
        other.join(turns.TURN_SECONDS / 5)
        assert other.is_alive()
    other.join(DEADLINE_S)
    assert found == [True]


def test_one_that_does_not_end_holds_up_nobody_for_long() -> None:
    taken = Turns(count=1)
    with taken.take(), taken.take() as has_waited:
        assert has_waited
    with ExitStack() as held:
        assert not held.enter_context(taken.take())

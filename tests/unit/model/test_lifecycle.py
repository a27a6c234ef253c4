# SPDX-License-Identifier: Apache-2.0
"""The table of statuses: every pair is either a transition or a typed refusal."""

import pytest

from insula.model.errors import WrongState
from insula.model.lifecycle import ALIVE, TRANSITIONS, Event, Status, after, can


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("event", Event)
def test_each_pair_follows_the_table_or_is_refused_naming_both(status: Status, event: Event) -> None:
    if (status, event) in TRANSITIONS:
        assert after(status, event) is TRANSITIONS[(status, event)]
        assert can(status, event)
        return
    assert not can(status, event)
    with pytest.raises(WrongState) as caught:
        after(status, event, name="redis")
    assert "redis" in caught.value.message
    assert status.value in caught.value.message


def test_every_status_can_be_reached_and_left() -> None:
    reached = set(TRANSITIONS.values()) | {Status.CREATED}
    assert reached == set(Status)
    assert {status for status, _ in TRANSITIONS} == set(Status)


def test_whatever_is_alive_can_end() -> None:
    for status in ALIVE - {Status.PAUSED}:
        assert can(status, Event.EXIT), status


def test_a_moved_container_never_runs_again_here() -> None:
    following = {event: to for (status, event), to in TRANSITIONS.items() if status is Status.MOVED}
    assert set(following.values()) == {Status.REMOVING}

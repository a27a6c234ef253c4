# SPDX-License-Identifier: Apache-2.0
"""What is told of containers that ran while insulad did not."""

import pytest

from insula.daemon.unwatched import tell_unwatched
from insula.model.change import Change
from records import container_record


@pytest.mark.parametrize(
    ("last_at", "since"), [(None, "00:16:40"), (500.0, "00:16:40"), (1060.0, "00:17:40")]
)
def test_the_gap_begins_with_the_last_look_or_the_start(last_at: float | None, since: str) -> None:
    told: list[Change] = []
    tell_unwatched([container_record(started_at=1000.0)], last_at=last_at, announce=told.append)
    (change,) = told
    assert (change.event, change.name, change.tenant) == ("unwatched", "web", "alice")
    assert change.detail.startswith(f"from 1970-01-01T{since}Z on, for ")

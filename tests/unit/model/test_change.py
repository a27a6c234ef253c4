# SPDX-License-Identifier: Apache-2.0
"""What `insula events` calls a change of a container's record."""

import pytest

from insula.model.change import change_of
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord
from records import container_record


def record(status: Status, **fields: object) -> ContainerRecord:
    return container_record(**{"status": status, "owner": "alpha", **fields})


@pytest.mark.parametrize(("before", "after", "event", "detail"), [
    (None, record(Status.CREATED), "created", ""),
    (record(Status.CREATED), record(Status.RUNNING), "started", ""),
    (record(Status.RUNNING), record(Status.PAUSED), "paused", ""),
    (record(Status.PAUSED), record(Status.RUNNING), "unpaused", ""),
    (record(Status.RUNNING), record(Status.EXITED, exit_code=3), "exited", "exit code 3"),
    (record(Status.RUNNING), record(Status.MIGRATING), "migrating", ""),
    (record(Status.MIGRATING), record(Status.RUNNING), "stayed", ""),
    (record(Status.MIGRATING), record(Status.MOVED, owner="beta"), "moved", "to host beta"),
    (record(Status.RUNNING), record(Status.RUNNING, name="other"), "renamed", "from web"),
    (record(Status.EXITED), None, "removed", ""),
])  # fmt: skip
def test_a_change_has_a_name(
    before: ContainerRecord | None, after: ContainerRecord | None, event: str, detail: str
) -> None:
    change = change_of(before, after, at=1.0)
    assert change is not None
    assert (change.event, change.detail, change.tenant) == (event, detail, "alice")


@pytest.mark.parametrize(("before", "after"), [
    (None, None),
    (record(Status.RUNNING), record(Status.RUNNING, pid=5)),
    (record(Status.MOVED), None),
])  # fmt: skip
def test_what_nobody_waits_for_is_not_told(
    before: ContainerRecord | None, after: ContainerRecord | None
) -> None:
    assert change_of(before, after, at=1.0) is None

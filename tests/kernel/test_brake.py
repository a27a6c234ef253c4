# SPDX-License-Identifier: Apache-2.0
"""The brake of a move, on a group of this machine."""

import time
import uuid
from collections.abc import Iterator

import pytest

from insula.kernel.cgroup import Group, Hierarchies, Limits, delete_parent
from insula.migrate.precopy import Brake
from waiting import DEADLINE_S


@pytest.fixture
def group() -> Iterator[Group]:
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    made = Group(hierarchies, parent, "one")
    made.create()
    yield made
    made.delete(time.monotonic() + DEADLINE_S)
    delete_parent(hierarchies, parent)


def test_a_brake_is_released_although_the_container_is_gone_to_the_other_host(group: Group) -> None:
    brake = Brake(group, limits=Limits())
    brake.tighten()
    group.delete(time.monotonic() + DEADLINE_S)
    brake.release()

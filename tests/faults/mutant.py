# SPDX-License-Identifier: Apache-2.0
"""An insulad with a mistake planted on purpose: `mutant.py MISTAKE daemon …`; or tests of one: `mutant.py MISTAKE pytest …`.

Each must be caught (`mutations.py`).
"""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from insula.cli.main import main
from insula.migrate import settle, target
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.store import Store

TIMEOUT_S = 1.0
TESTS = "pytest"


def thaw_on_timeout() -> None:
    """The source thinks that a target which does not answer has lost it."""

    def confirm(runtime: Runtime, record: ContainerRecord, **_rest: Any) -> bool:
        runtime.closing.wait(TIMEOUT_S)
        mine = replace(
            record, owner=runtime.host_name, generation=record.generation - 1, status=Status.MIGRATING
        )
        runtime.store.update_container(mine)
        return False

    settle.confirm_or_take_back = confirm


def lock_dropped_late() -> None:
    """The target's port is on the bridge before the commit."""
    right = target.Arrival._hold_until_commit

    def hold(self: target.Arrival) -> None:
        dump.release_network(self._record)
        right(self)

    target.Arrival._hold_until_commit = hold  # type: ignore[method-assign]


def read_then_write() -> None:
    """The owner is read, and written later without another look."""
    meet = threading.Barrier(2)

    def commit(self: Store, container_id: str, expected_generation: int, *, new_owner: str) -> bool:
        record = self.get_container(container_id)
        if record.generation != expected_generation:
            return False
        with suppress(threading.BrokenBarrierError):
            meet.wait(TIMEOUT_S)
        changed = replace(record, owner=new_owner, generation=expected_generation + 1)
        with self.transaction(durable=True):
            self.update_container(changed)
        return True

    Store.commit_owner = commit  # type: ignore[method-assign]


def no_fsync() -> None:
    """Nothing waits for the disk."""
    right = Store.transaction

    def transaction(self: Store, *, durable: bool = False) -> AbstractContextManager[None]:
        return right(self, durable=False)

    Store.transaction = transaction  # type: ignore[method-assign]


MISTAKES: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (thaw_on_timeout, lock_dropped_late, read_then_write, no_fsync)
}

if __name__ == "__main__":
    MISTAKES[sys.argv.pop(1)]()
    if sys.argv[1] == TESTS:
        sys.exit(pytest.main(sys.argv[2:]))
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""An insulad with a mistake planted on purpose: `mutant.py MISTAKE daemon …`.  The runner must catch each (`mutations.py`)."""

import sys
import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from insula.cli.main import main
from insula.migrate import settle, target
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord
from insula.runtime import dump
from insula.runtime.context import Runtime
from insula.runtime.store import Store

TIMEOUT_S = 1.0


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

    def commit(self: Store, container_id: str, expected_generation: int, *, new_owner: str) -> bool:
        record = self.get_container(container_id)
        time.monotonic()
        changed = replace(record, owner=new_owner, generation=expected_generation + 1)
        self.update_container(changed, durable=True)
        return True

    Store.commit_owner = commit  # type: ignore[method-assign]


MISTAKES: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (thaw_on_timeout, lock_dropped_late, read_then_write)
}

if __name__ == "__main__":
    MISTAKES[sys.argv.pop(1)]()
    sys.exit(main(sys.argv[1:]))

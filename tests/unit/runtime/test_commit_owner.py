# SPDX-License-Identifier: Apache-2.0
"""The point of no return: compared and set as one, on disk when it returns; and this test would notice if it were not."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from insula.runtime.store import Store
from records import container_record

Commit = Callable[[Store, str, int, str], bool]


def right(store: Store, container: str, generation: int, owner: str) -> bool:
    return store.commit_owner(container, generation, new_owner=owner)


def read_then_write(store: Store, container: str, generation: int, owner: str) -> bool:
    """The planted mistake: looks, and then writes."""
    record = store.get_container(container)
    if record.generation != generation:
        return False
    MEET.wait(5.0)
    store.update_container(msgspec.structs.replace(record, owner=owner, generation=generation + 1))
    return True


def never_synchronised(store: Store, container: str, generation: int, owner: str) -> bool:
    """The planted mistake: nothing waits for the disk."""
    record = store.get_container(container)
    store.update_container(msgspec.structs.replace(record, owner=owner, generation=generation + 1))
    return True


MEET = threading.Barrier(2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "db.sqlite")
    made.add_container(container_record(id="c" * 64, name="c", owner="alpha", generation=1))
    return made


def winners(store: Store, commit: Commit) -> int:
    """Have two hosts take the container at once.  Returns: how many think that they have it."""
    won: list[bool] = []
    threads = [
        threading.Thread(target=lambda owner=owner: won.append(commit(store, "c" * 64, 1, owner)))
        for owner in ("beta", "gamma")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(won)


def is_synchronised(store: Store, commit: Commit) -> bool:
    """Tell whether SQLite was told to wait for the disk around the change."""
    said: list[str] = []
    store._connection.set_trace_callback(said.append)
    commit(store, "c" * 64, 1, "beta")
    store._connection.set_trace_callback(None)
    return "PRAGMA synchronous=FULL" in said[: said.index("COMMIT")]


def test_one_of_two_gets_it(store: Store) -> None:
    assert winners(store, right) == 1


def test_reading_and_then_writing_is_noticed(store: Store) -> None:
    assert winners(store, read_then_write) == 2


def test_it_is_on_disk_when_it_returns(store: Store) -> None:
    assert is_synchronised(store, right)


def test_a_commit_that_does_not_wait_for_the_disk_is_noticed(store: Store) -> None:
    assert not is_synchronised(store, never_synchronised)

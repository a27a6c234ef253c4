# SPDX-License-Identifier: Apache-2.0
"""A source whose disk is full: what must be written down is written when there is room."""

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from insula.migrate import settle
from insula.migrate.relays import RELAY
from insula.migrate.settle import LEAVING, thaw
from insula.model.errors import DiskFull
from insula.model.lifecycle import Status
from insula.model.migration import Owner
from insula.runtime.context import Runtime
from insula.runtime.database import Value
from insula.runtime.doubt import Doubts
from insula.runtime.store import Store
from records import container_record
from waiting import DEADLINE_S

ID = "c" * 64


class SmallDisk(Store):
    """A store on a disk that has no room for a while."""

    is_full = False

    def write(self, statement: str, *values: Value) -> int:
        if self.is_full:
            raise DiskFull("cannot write the store: no space left")
        return super().write(statement, *values)


def moving(store: Store) -> None:
    store.add_container(
        container_record(id=ID, name="c", owner="alpha", generation=1, status=Status.MIGRATING)
    )
    for note in (LEAVING, RELAY):
        store.write_journal(note + ID, b"beta")


def test_notes_of_a_move_that_failed_go_when_the_disk_has_room_again(tmp_path: Path) -> None:
    store = SmallDisk(tmp_path / "db.sqlite")
    moving(store)
    closing = threading.Event()
    group = SimpleNamespace(exists=lambda: False)
    runtime: Any = SimpleNamespace(store=store, closing=closing, group=lambda _record: group)
    store.is_full = True
    thaw(cast(Runtime, runtime), ID)
    store.is_full = False
    try:
        for _look in range(int(DEADLINE_S / 0.05)):
            if store.get_container(ID).status is Status.RUNNING:
                break
            closing.wait(0.05)
        assert store.get_container(ID).status is Status.RUNNING
        assert [*store.list_journal(LEAVING), *store.list_journal(RELAY)] == []
    finally:
        closing.set()


def test_a_frozen_source_that_cannot_be_taken_back_now_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SmallDisk(tmp_path / "db.sqlite")
    moving(store)
    assert store.commit_owner(ID, 1, new_owner="beta")
    asked: list[int] = []
    thawed = threading.Event()

    def ask(*_arguments: object, **_words: object) -> Owner:
        asked.append(1)
        store.is_full = len(asked) == 1
        return Owner(name="", generation=0)  # it has never heard of it

    monkeypatch.setattr(settle, "_ask", ask)
    monkeypatch.setattr(settle, "thaw", lambda *_arguments: thawed.set())
    runtime: Any = SimpleNamespace(
        store=store,
        host_name="alpha",
        closing=threading.Event(),
        doubts=Doubts(),
        locked=lambda _container_id: contextlib.nullcontext(),
    )
    peers: Any = None
    settle.settle_later(runtime, ID, peers=peers)
    assert thawed.wait(DEADLINE_S)
    assert (len(asked), store.get_container(ID).owner) == (2, "alpha")
    store.close()

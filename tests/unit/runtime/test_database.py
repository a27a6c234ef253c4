# SPDX-License-Identifier: Apache-2.0
"""The store on a disk that is full: our error, nothing changed, and everything as before when there is room again."""

from pathlib import Path

import pytest

from insula.model.errors import DiskFull
from insula.runtime.database import Database

BIG = b"x" * 200_000


@pytest.fixture
def full(tmp_path: Path) -> Database:
    database = Database(tmp_path / "db.sqlite")
    pages = int(str(database.read("PRAGMA page_count")[0][0]))
    database.read(f"PRAGMA max_page_count = {pages + 2}")
    return database


def test_a_full_disk_is_told_as_such(full: Database) -> None:
    with pytest.raises(DiskFull):
        full.write("INSERT INTO journal VALUES ('a', ?)", BIG)


def test_a_transaction_that_finds_no_room_changes_nothing_and_ends(full: Database) -> None:
    with pytest.raises(DiskFull), full.transaction(durable=True):
        full.write("INSERT INTO journal VALUES ('small', x'00')")
        full.write("INSERT INTO journal VALUES ('big', ?)", BIG)
    assert full.read("SELECT * FROM journal") == []
    full.read("PRAGMA max_page_count = 100000")
    with full.transaction(durable=True):
        full.write("INSERT INTO journal VALUES ('big', ?)", BIG)
    assert len(full.read("SELECT * FROM journal")) == 1
    assert not full._connection.in_transaction

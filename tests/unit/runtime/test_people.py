# SPDX-License-Identifier: Apache-2.0
"""Users and tokens in the store; what an older insulad has written."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from insula.model.errors import NameTaken, TokenNotFound, UserNotFound
from insula.model.grant import Action
from insula.model.users import Origin, TokenRecord, UserRecord
from insula.runtime.database import MIGRATIONS
from insula.runtime.people import People
from insula.runtime.store import Store

ALICE = UserRecord(name="alice", origin=Origin.UNIX, tenant="web", number=1000)
TOKEN = TokenRecord(id="t1", owner="alice", uid=1000, tenant="web", scopes=(Action.READ,), expires_at=100.0)


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    made = People(tmp_path / "db.sqlite")
    yield made
    made.close()


def test_a_uid_and_a_certificate_are_one_users_each(people: People) -> None:
    people.save_user(ALICE)
    for twin in (
        replace(ALICE, name="bob"),
        replace(ALICE, name="bob", number=1, origin=Origin.UNIX, fingerprint="ab"),
    ):
        if twin.fingerprint:
            people.save_user(replace(ALICE, fingerprint="ab"))
        with pytest.raises(NameTaken):
            people.save_user(twin)
    people.save_user(UserRecord(name="@g", origin=Origin.GROUP, tenant="g", number=1000))


def test_a_number_is_taken_away_from_who_had_it_only(people: People) -> None:
    people.save_user(ALICE)
    people.save_user(UserRecord(name="@g", origin=Origin.GROUP, tenant="g", number=1000))
    people.unbind(Origin.UNIX, number=1000, but="alice")
    assert people.find_user_of_uid(1000) == ALICE
    people.unbind(Origin.UNIX, number=1000, but="bob")
    assert people.find_user_of_uid(1000) is None
    assert people.get_user("@g").number == 1000


def test_a_user_goes_with_its_tokens(people: People) -> None:
    people.save_user(ALICE)
    people.save_api_token(TOKEN, digest=b"d", now=1.0)
    people.delete_user("alice")
    assert people.find_token("t1") is None
    for act in (people.delete_user, people.get_user):
        with pytest.raises(UserNotFound):
            act("alice")


def test_tokens_that_are_over_go_when_another_comes(people: People) -> None:
    people.save_api_token(TOKEN, digest=b"d", now=1.0)
    people.save_api_token(replace(TOKEN, id="t2", owner="bob", expires_at=300.0), digest=b"e", now=200.0)
    assert [each.id for each in people.list_tokens_of(None)] == ["t2"]
    assert people.list_tokens_of("alice") == []
    with pytest.raises(TokenNotFound):
        people.delete_api_token("t1")


def test_what_was_there_before_makers_were_written_down_is_roots(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    number = next(place for place, script in enumerate(MIGRATIONS) if "$.creator" in script)
    old = sqlite3.connect(path)
    old.executescript("".join(MIGRATIONS[:number]))
    old.execute("CREATE TABLE schema (only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER)")
    old.execute("INSERT INTO schema VALUES (1, ?)", (number,))
    record = {
        "id": "a" * 64, "name": "web", "tenant": "alice", "spec": {"image": "höst"}, "image": "i", "layers": [], "config": {},
        "status": "exited", "uid_base": 1, "created_at": 1.0,
    }  # fmt: skip
    row = ("a" * 64, "alice", "web", 1.0, "alpha", 1, json.dumps(record, ensure_ascii=False).encode())
    columns = "id, tenant, name, created_at, owner, generation, record"
    old.execute(f"INSERT INTO containers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    old.commit()
    old.close()
    store = Store(path)
    found = store.get_container("a" * 64)
    store.close()
    assert (found.creator, found.creator_uid, found.creator_is_admin) == ("root", 0, True)
    assert found.spec.image == "höst"

# SPDX-License-Identifier: Apache-2.0
"""What whom is permitted to ask for: the one who asks, the one who made a container, everybody of a tenant."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from insula.daemon.rights import PolicyFile, Rights
from insula.model.grant import Action, Grant, Kind, Principal, Role
from insula.model.lifecycle import Status
from insula.model.permit import EVERYTHING, Permit
from insula.model.record import ContainerRecord, ImageConfig
from insula.model.spec import Spec
from insula.model.users import Origin, UserRecord
from insula.runtime.people import People
from insula.tenant.policy import LOW_PORTS

BY_ROOT = ContainerRecord(
    id="a" * 64, name="web", tenant="root", spec=Spec(image="host"), image="i", layers=(), config=ImageConfig(),
    status=Status.CREATED, uid_base=0x20000000, created_at=1.0, creator="root", creator_uid=0, creator_is_admin=True,
)  # fmt: skip


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    made = People(tmp_path / "db.sqlite")
    yield made
    made.close()


@pytest.fixture
def rights(people: People, tmp_path: Path) -> Rights:
    return Rights(people, PolicyFile(tmp_path / "none.toml"), admins=frozenset())


def test_what_an_admin_made_starts_as_it_was_made(rights: Rights) -> None:
    assert rights.of_creator(BY_ROOT) == EVERYTHING


def test_what_an_admins_token_for_less_made_never_becomes_an_admins(rights: Rights) -> None:
    token = Principal(
        name="root", uid=0, gid=0, role=Role.ADMIN, kind=Kind.TOKEN, scopes=frozenset({Action.CREATE})
    )
    asked = rights.of_caller(Grant(principal=token, action=Action.CREATE, tenant="root"))
    started = rights.of_creator(replace(BY_ROOT, creator_is_admin=False))
    for permit in (asked, started):
        assert not permit.is_everything
        assert permit.opens_as is None, "root's files are not for it"


def test_what_nobody_known_made_gets_what_everybody_gets(rights: Rights) -> None:
    for record in (
        replace(BY_ROOT, creator="", creator_uid=None),
        replace(BY_ROOT, creator="gone", creator_uid=None),
        replace(BY_ROOT, creator="other", creator_uid=0),
    ):
        assert rights.of_creator(replace(record, tenant="web")) == Permit()


def test_a_maker_who_works_for_another_tenant_now_has_no_say(people: People, rights: Rights) -> None:
    maker = UserRecord(name="anna", origin=Origin.REMOTE, tenant="web", role=Role.ADMIN)
    record = replace(BY_ROOT, tenant="web", creator="anna", creator_uid=None)
    people.save_user(maker)
    assert rights.of_creator(record) == EVERYTHING
    people.save_user(replace(maker, role=Role.USER))
    assert not rights.of_creator(record).is_everything
    people.save_user(replace(maker, role=Role.USER, tenant="else"))
    assert rights.of_creator(record) == Permit()


def test_what_another_host_sends_for_root_may_publish_what_it_published(rights: Rights) -> None:
    assert rights.of_tenant("root") == Permit(low_ports=LOW_PORTS)
    assert rights.of_tenant("web") == Permit()

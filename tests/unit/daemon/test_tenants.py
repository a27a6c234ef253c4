# SPDX-License-Identifier: Apache-2.0
"""Tenants: looking makes none but the caller's own, and none is ever called what is no name."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from insula.daemon.tenant_use import TenantUse
from insula.daemon.tenants import OWN, Tenants
from insula.daemon.uid_ranges import UidRanges
from insula.model.errors import BadRequest, InUse, TenantNotFound
from insula.model.grant import EVERY_TENANT, Action, Grant, Principal, Role
from insula.runtime.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "db.sqlite")) as opened:
        yield opened


@pytest.fixture
def tenants(store: Store) -> Tenants:
    """Those of a store, without what measures their use."""
    unused: Any = None
    runtime: Any = SimpleNamespace(store=store)
    return Tenants(
        runtime=runtime, limits=unused, uid_ranges=UidRanges(store, files=()), disks=unused, use=unused
    )


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.ADMIN])
@pytest.mark.parametrize("name", ["nobody-there", EVERY_TENANT, "../x"])
def test_who_looks_at_a_tenant_that_is_not_there_makes_none(
    tenants: Tenants, store: Store, role: Role, name: str
) -> None:
    grant = Grant(principal=Principal(name="carol", uid=1000, role=role), action=Action.READ, tenant=name)
    with pytest.raises((TenantNotFound, BadRequest)):
        tenants.get_tenant(grant, OWN)
    assert store.list_tenants() == []


@pytest.mark.parametrize("name", [EVERY_TENANT, "../x", "a/b", "A", ""])
def test_no_uids_are_given_to_what_is_no_tenants_name(store: Store, name: str) -> None:
    for ask in (UidRanges(store, files=()).tenant, UidRanges(store, files=()).base_of):
        with pytest.raises(BadRequest):
            ask(name)
    assert store.list_tenants() == []


def test_a_tenant_with_profiles_stays_until_they_are_removed(tenants: Tenants) -> None:
    count = 2
    unused: Any = None
    tenants.use = TenantUse(
        unused, unused, count_streams=unused, count_requests=unused, count_profiles=lambda _: count
    )
    tenants.uid_ranges.tenant("guests")
    grant = Grant(
        principal=Principal(name="root", uid=0, role=Role.ADMIN), action=Action.ADMIN, tenant="root"
    )
    with pytest.raises(InUse, match="it has 2 profiles"):
        tenants.remove_tenant(grant, "guests")

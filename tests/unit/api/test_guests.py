# SPDX-License-Identifier: Apache-2.0
"""Who counts among the connections from other hosts, and who is one too many."""

import asyncio
from typing import cast

import pytest

from insula.api import guests
from insula.api.guests import Guests
from insula.model.errors import TooManyRequests
from insula.model.grant import Kind, Principal, Role

ALICE = Principal(name="alice", kind=Kind.TOKEN)
BOB = Principal(name="bob", kind=Kind.REMOTE)
ROOT = Principal(name="root", kind=Kind.REMOTE, role=Role.ADMIN)
BETA = Principal(name="beta", kind=Kind.HOST)
NOBODY = Principal(name="", kind=Kind.NOBODY)


class Connection:
    """As much of a transport as is looked at."""

    def __init__(self, *, is_secured: bool = True) -> None:
        self.is_secured, self.is_closed = is_secured, False

    def get_extra_info(self, _name: str) -> object:
        return self if self.is_secured else None

    def is_closing(self) -> bool:
        return self.is_closed


def connection(*, is_secured: bool = True) -> asyncio.Transport:
    return cast(asyncio.Transport, Connection(is_secured=is_secured))


def filled(here: Guests, principal: Principal, *, number: int) -> list[asyncio.Transport]:
    came = [connection() for _ in range(number)]
    for each in came:
        here.let_in(each, principal)
        assert here.is_guest(each)
    return came


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MAX_OF_ONE", 2)
    monkeypatch.setattr(guests, "MAX_GUESTS", 3)


def test_one_user_has_so_many_and_gets_places_back_that_it_leaves() -> None:
    here = Guests()
    held = filled(here, ALICE, number=2)
    late = connection()
    with pytest.raises(TooManyRequests, match="of one user"):
        here.let_in(late, ALICE)
    assert not here.is_guest(late)
    here.let_in(held[0], ALICE)  # one that is in may ask as often as it likes
    cast(Connection, held[0]).is_closed = True
    here.let_in(late, ALICE)


def test_all_users_together_have_so_many() -> None:
    here = Guests()
    held = [filled(here, ALICE, number=2), filled(here, BOB, number=1)]
    with pytest.raises(TooManyRequests, match="from other hosts"):
        here.let_in(connection(), BOB)
    assert held


@pytest.mark.parametrize("principal", [ROOT, BETA])
def test_administrators_and_paired_hosts_take_nobodys_place(principal: Principal) -> None:
    here = Guests()
    held = [filled(here, principal, number=10), filled(here, ALICE, number=2)]
    assert held


def test_nobody_is_no_guest_nor_is_a_unix_socket() -> None:
    here = Guests()
    unknown, local = connection(), connection(is_secured=False)
    here.let_in(unknown, NOBODY)
    here.let_in(local, ALICE)
    assert not here.is_guest(unknown)
    assert not here.is_guest(local)

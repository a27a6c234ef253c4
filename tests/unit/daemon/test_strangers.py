# SPDX-License-Identifier: Apache-2.0
"""Whose place is taken when there is none left, and what counts as one address."""

import asyncio
import contextlib
import socket
from typing import cast

import pytest

from insula.daemon import strangers
from insula.daemon.strangers import CONNECTS_PER_S, MAX_SITES, Strangers, site_of


class From:
    """A connection of which only the address is looked at."""

    def __init__(self, address: str) -> None:
        self.address, self.is_cut = address, False

    def getpeername(self) -> tuple[str, int]:
        return self.address, 1

    def shutdown(self, _how: int) -> None:
        self.is_cut = True


def came_from(address: str) -> socket.socket:
    return cast(socket.socket, From(address))


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_neighbours_of_ipv6_are_one_site(address: str, site: str) -> None:
    assert site_of(came_from(address)) == site


def test_who_has_gone_is_of_no_site() -> None:
    with contextlib.closing(socket.socket()) as unconnected:
        assert site_of(unconnected) == ""


def test_a_flood_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MAX_STRANGERS", 4)

    async def test() -> None:
        here = Strangers(is_guest=lambda _transport: False)
        honest, flood = From("10.0.0.1"), [From("10.0.0.2") for _ in range(10)]
        for each in (honest, *flood):
            here.let_in(cast(socket.socket, each))
        assert not honest.is_cut
        assert [each.is_cut for each in flood] == [True] * 7 + [False] * 3
        here.close()
        assert honest.is_cut

    asyncio.run(test())


def test_who_knocks_too_often_is_not_let_in_and_others_are() -> None:
    async def test() -> None:
        here = Strangers(is_guest=lambda _transport: False)
        flood = [here.may_come(came_from("10.0.0.2")) for _ in range(1000)]
        assert flood[:CONNECTS_PER_S] == [True] * CONNECTS_PER_S
        assert not all(flood)
        assert here.may_come(came_from("10.0.0.1"))

    asyncio.run(test())


def test_as_many_sites_as_one_likes_are_not_remembered() -> None:
    async def test() -> None:
        here = Strangers(is_guest=lambda _transport: False)
        for number in range(3 * MAX_SITES):
            assert here.may_come(came_from(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
        assert here.sites <= MAX_SITES

    asyncio.run(test())

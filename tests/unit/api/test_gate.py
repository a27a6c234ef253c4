# SPDX-License-Identifier: Apache-2.0
"""Whom the gate lets in, and whom it counts."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web

from insula.api.gate import Gate
from insula.model.errors import QuotaExceeded
from insula.model.grant import Action, Grant, Kind, Principal, Role
from insula.model.quota import Resource
from insula.tenant.quota import refuse_more

ALICE = Principal(name="alice", uid=1000, role=Role.USER)
ROOT = Principal(name="root", uid=0, role=Role.ADMIN)
BETA = Principal(name="beta", kind=Kind.HOST)


class One:
    """An allowance of one of everything."""

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return 1

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        refuse_more(resource, limit=1, used=used, more=more)


class Transport:
    """Something that a request came by."""

    def get_extra_info(self, _name: str) -> object:
        return None


def request() -> web.Request:
    made = SimpleNamespace(
        transport=Transport(), remote="10.0.0.1", get_extra_info=lambda _name, _default=None: None
    )
    return cast(web.Request, made)


def grant(principal: Principal, tenant: str) -> Grant:
    return Grant(principal=principal, action=Action.READ, tenant=tenant)


def test_what_is_open_is_counted_until_it_ends() -> None:
    gate = Gate(One(), is_held=lambda _inode: False)

    async def ask_twice() -> None:
        async with gate.passed(request(), grant(ALICE, "alice")):
            assert gate.open_of("alice") == 1
            with pytest.raises(QuotaExceeded):
                async with gate.passed(request(), grant(ALICE, "alice")):
                    pass
        assert gate.open_of("alice") == 0

    asyncio.run(ask_twice())


@pytest.mark.parametrize(("principal", "tenant"), [(ROOT, "root"), (BETA, "*")])
def test_administrators_and_hosts_are_not_limited(principal: Principal, tenant: str) -> None:
    gate = Gate(One(), is_held=lambda _inode: False)

    async def ask_often() -> None:
        for _ in range(50):
            await gate.wait_turn(request())
            one, two = (gate.passed(request(), grant(principal, tenant)) for _ in range(2))
            async with one, two:
                pass

    asyncio.run(asyncio.wait_for(ask_often(), 5))


def test_streams_in_the_spawners_hands_count_as_long_as_it_has_them() -> None:
    held = {7}
    gate = Gate(One(), is_held=held.__contains__)
    gate.hand_over("alice", 7)
    gate.hand_over("alice", 8)
    assert gate.open_of("alice") == 1
    held.clear()
    assert gate.open_of("alice") == 0


class Slow(One):
    """An allowance of ten requests a second."""

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return 10 if resource is Resource.REQUESTS else None


def test_users_of_a_tenant_share_its_pace_and_have_turns() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), is_held=lambda _inode: False)
        alices, bobs = request(), request()
        bobs.remote = "10.0.0.2"  # type: ignore[misc]
        assert gate.rate_of("at 10.0.0.1") is None
        for each in (alices, bobs):
            async with gate.passed(each, grant(ALICE, "alice")):
                pass
        assert gate.rate_of("at 10.0.0.1") == 10
        order: list[str] = []

        async def one(name: str, by: web.Request) -> None:
            await gate.wait_turn(by)
            order.append(name)

        await asyncio.gather(*(one(f"alice {number}", alices) for number in range(28)), one("bob", bobs))
        assert order[:20] == [f"alice {number}" for number in range(20)]  # the burst
        assert order.index("bob") <= 22

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_who_gives_up_takes_no_turn_of_another() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), is_held=lambda _inode: False)
        by = request()
        async with gate.passed(by, grant(ALICE, "alice")):
            pass
        for _ in range(20):
            await gate.wait_turn(by)
        gone = asyncio.ensure_future(gate.wait_turn(by))
        await asyncio.sleep(0)
        gone.cancel()
        await gate.wait_turn(by)
        assert gone.cancelled()

    asyncio.run(asyncio.wait_for(ask(), 20))

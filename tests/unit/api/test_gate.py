# SPDX-License-Identifier: Apache-2.0
"""Whom the gate lets in, and whom it counts."""

import asyncio
import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web

from insula.api.gate import LOOK_S, Gate
from insula.model.errors import QuotaExceeded
from insula.model.grant import Action, Grant, Kind, Principal, Role
from insula.model.quota import Resource
from insula.tenant.quota import refuse_more

ALICE = Principal(name="alice", uid=1000, role=Role.USER)
BOB = Principal(name="bob", uid=1001, role=Role.OPERATOR)
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


def request(*, address: str = "10.0.0.1", token: str = "") -> web.Request:
    made = SimpleNamespace(
        transport=Transport(),
        remote=address,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        get_extra_info=lambda _name, _default=None: None,
    )
    return cast(web.Request, made)


def grant(principal: Principal, tenant: str) -> Grant:
    return Grant(principal=principal, action=Action.READ, tenant=tenant)


def test_what_is_open_is_counted_until_it_ends() -> None:
    gate = Gate(One(), held=frozenset)

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
    gate = Gate(One(), held=frozenset)

    async def ask_often() -> None:
        for _ in range(50):
            await gate.wait_turn(request())
            one, two = (gate.passed(request(), grant(principal, tenant)) for _ in range(2))
            async with one, two:
                pass

    asyncio.run(asyncio.wait_for(ask_often(), 5))


def test_streams_in_the_spawners_hands_count_as_long_as_it_has_them() -> None:
    held = {7}
    gate = Gate(One(), held=lambda: frozenset(held))
    gate.hand_over("alice", 7)
    gate.hand_over("alice", 8)
    assert gate.open_of("alice") == 1
    held.clear()
    assert gate.open_of("alice") == 0


class Few(One):
    """An allowance of so many of everything."""

    def __init__(self, most: int) -> None:
        self._most = most

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return self._most

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        refuse_more(resource, limit=self._most, used=used, more=more)


class Spawner:
    """Holds sockets, and counts how often all of them are looked through."""

    def __init__(self, *inodes: int) -> None:
        self.sockets = set(inodes)
        self.looks = 0

    def held(self) -> frozenset[int]:
        self.looks += 1
        return frozenset(self.sockets)


async def try_often(gate: Gate, *, times: int) -> int:
    """Ask one request after the other.  Returns: how many were let in."""
    let_in = 0
    for _ in range(times):
        with contextlib.suppress(QuotaExceeded):
            async with gate.passed(request(), grant(ALICE, "alice")):
                let_in += 1
    return let_in


def test_the_spawners_sockets_are_looked_through_only_when_it_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look costs milliseconds in which nobody else is served, and a tenant may have many streams."""
    spawner = Spawner(*range(128))
    gate = Gate(Few(129), held=spawner.held)
    for each in range(128):
        gate.hand_over("alice", each)
    spawner.looks = 0
    assert asyncio.run(try_often(gate, times=50)) == 50
    assert spawner.looks == 0
    gate.hand_over("alice", 128)
    spawner.sockets.add(128)
    assert asyncio.run(try_often(gate, times=50)) == 0
    assert spawner.looks == 1
    spawner.sockets.clear()
    now = time.monotonic()
    monkeypatch.setattr("insula.api.gate.time", SimpleNamespace(monotonic=lambda: now + LOOK_S))
    assert asyncio.run(try_often(gate, times=50)) == 50
    assert spawner.looks == 2


def test_streams_that_ended_are_not_remembered_for_ever() -> None:
    gate = Gate(One(), held=frozenset)
    for each in range(10_000):
        gate.hand_over("alice", each)
    assert len(gate._handed_over["alice"]) < 200


class Slow(One):
    """An allowance of ten requests a second."""

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return 10 if resource is Resource.REQUESTS else None


async def learn(gate: Gate, by: web.Request, *, principal: Principal) -> None:
    """Let the gate see whose requests these are."""
    async with gate.passed(by, grant(principal, principal.tenant)):
        pass


def test_who_asks_for_another_tenant_is_counted_among_its_own() -> None:
    gate = Gate(One(), held=frozenset)

    async def ask() -> None:
        async with gate.passed(request(), grant(BOB, "alice")):
            assert (gate.open_of("alice"), gate.open_of("bob")) == (0, 1)
            with pytest.raises(QuotaExceeded):
                async with gate.passed(request(), grant(BOB, "alice")):
                    pass
            async with (
                gate.passed(request(), grant(ROOT, "alice")),
                gate.passed(request(), grant(ALICE, "alice")),
            ):
                assert gate.open_of("alice") == 1

    asyncio.run(ask())


def test_who_asks_for_another_tenant_keeps_its_own_pace() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), held=frozenset)
        alices, bobs = request(), request(address="10.0.0.2")
        await learn(gate, alices, principal=ALICE)
        async with gate.passed(bobs, grant(BOB, "alice")):
            pass
        flood = [asyncio.ensure_future(gate.wait_turn(bobs)) for _ in range(25)]
        await asyncio.sleep(0)
        hers = asyncio.ensure_future(gate.wait_turn(alices))
        await asyncio.sleep(0)
        assert hers.done()
        assert not all(each.done() for each in flood)
        await asyncio.gather(*flood)

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_tokens_from_one_address_are_told_apart() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), held=frozenset)
        alices, bobs = request(token="insula_a_secret"), request(token="insula_b_secret")
        await learn(gate, alices, principal=ALICE)
        await learn(gate, bobs, principal=BOB)
        for _ in range(20):
            await gate.wait_turn(alices)
        his, hers = (asyncio.ensure_future(gate.wait_turn(each)) for each in (bobs, alices))
        await asyncio.sleep(0)
        assert (his.done(), hers.done()) == (True, False)
        guessed = asyncio.ensure_future(gate.wait_turn(request(token="insula_a_guessed")))
        await asyncio.sleep(0)
        assert guessed.done(), "who does not have the secret takes no turn of the owner"
        await hers

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_a_wrong_token_does_not_free_from_the_pace_of_the_connection() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), held=frozenset)
        await learn(gate, request(), principal=ALICE)
        for _ in range(20):
            await gate.wait_turn(request())
        guessed = asyncio.ensure_future(gate.wait_turn(request(token="insula_x_y")))
        await asyncio.sleep(0)
        assert not guessed.done()
        await guessed

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_a_user_with_many_tokens_has_one_turn() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), held=frozenset)
        alices = [request(token=f"insula_{number}_secret") for number in range(4)]
        bobs = request(address="10.0.0.2")
        for each in alices:
            await learn(gate, each, principal=ALICE)
        await learn(gate, bobs, principal=replace(BOB, tenant="alice"))
        for _ in range(20):
            await gate.wait_turn(bobs)
        order: list[str] = []

        async def one(name: str, by: web.Request) -> None:
            await gate.wait_turn(by)
            order.append(name)

        await asyncio.gather(*(one("alice", each) for each in alices), one("bob", bobs))
        assert order.index("bob") == 1

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_users_of_a_tenant_share_its_pace_and_have_turns() -> None:
    async def ask() -> None:
        gate = Gate(Slow(), held=frozenset)
        alices, bobs = request(), request(address="10.0.0.2")
        assert gate.rate_of("at 10.0.0.1") is None
        await learn(gate, alices, principal=ALICE)
        await learn(gate, bobs, principal=replace(BOB, tenant="alice"))
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
        gate = Gate(Slow(), held=frozenset)
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

# SPDX-License-Identifier: Apache-2.0
"""Paired hosts: list, token, add, remove; and the other side of pairing."""

import asyncio

import msgspec
from aiohttp import web

from insula.api.bodies import HostView, PairRequest
from insula.api.call import Call, answer, empty
from insula.api.verbs import Reporter, Result, Work
from insula.model.record import HostRecord
from insula.model.spec import DrainWish, HostWish, UndrainWish


async def list_all(call: Call) -> web.StreamResponse:
    hosts = await call.run(call.api.store.list_hosts)
    return answer(await asyncio.gather(*(_view(call, host) for host in hosts)))


async def _view(call: Call, host: HostRecord) -> HostView:
    reachable = await call.run(call.api.pairing.is_reachable, host)
    return HostView(**msgspec.structs.asdict(host), reachable=reachable)


async def issue_token(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.pairing.issue_token))


async def add(call: Call) -> web.StreamResponse:
    wish = await call.body(HostWish)
    return answer(await call.run(call.api.pairing.join, wish), status=201)


async def remove(call: Call) -> web.StreamResponse:
    await call.run(call.api.pairing.remove, call.ref)
    return empty()


async def drain(call: Call) -> web.StreamResponse:
    wish = await call.body(DrainWish, may_be_empty=True)
    if wish.plan:
        return answer(await call.run(call.api.verbs.plan_drain, call.grant, wish))

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.drain(call.grant, wish, reporter=reporter)

    return _begin(call, work, kind="drain")


async def undrain(call: Call) -> web.StreamResponse:
    wish = await call.body(UndrainWish, may_be_empty=True)

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.undrain(call.grant, wish, reporter=reporter)

    return _begin(call, work, kind="undrain")


def _begin(call: Call, work: Work, *, kind: str) -> web.StreamResponse:
    tenant = call.grant.principal.tenant
    started = call.api.operations.start(
        work, kind=kind, tenant=tenant, asker=tenant, subject=call.api.identity.name, may_cancel=True
    )
    return answer(started, status=202)


async def pair(call: Call) -> web.StreamResponse:
    request = await call.body(PairRequest)
    remote = call.request.remote or ""
    return answer(await call.run(call.api.pairing.accept, request, remote=remote))

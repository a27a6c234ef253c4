# SPDX-License-Identifier: Apache-2.0
"""Tenants: list, create, look at limits and use, change limits, remove."""

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.model.quota import QuotaWish, TenantWish


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.list_tenants, call.grant))


async def create(call: Call) -> web.StreamResponse:
    wish = await call.body(TenantWish)
    return answer(await call.run(call.api.verbs.create_tenant, call.grant, wish), status=201)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.get_tenant, call.grant, call.ref))


async def change(call: Call) -> web.StreamResponse:
    wish = await call.body(QuotaWish)
    return answer(await call.run(call.api.verbs.change_tenant, call.grant, call.ref, wish=wish))


async def delete(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.remove_tenant, call.grant, call.ref)
    return empty()

# SPDX-License-Identifier: Apache-2.0
"""Networks: list, create, inspect, remove."""

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.model.spec import NetworkWish


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.list_networks, call.grant))


async def create(call: Call) -> web.StreamResponse:
    wish = await call.body(NetworkWish)
    record = await call.run(call.api.verbs.create_network, call.grant, wish)
    call.deed.creates(record.id, name=record.name)
    return answer(record, status=201)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.get_network, call.grant, call.ref))


async def delete(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.delete_network, call.grant, call.ref)
    return empty()

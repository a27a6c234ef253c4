# SPDX-License-Identifier: Apache-2.0
"""Volumes: list, create, inspect, remove."""

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.model.spec import VolumeWish


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.list_volumes, call.grant))


async def create(call: Call) -> web.StreamResponse:
    wish = await call.body(VolumeWish, may_be_empty=True)
    record = await call.run(call.api.verbs.create_volume, call.grant, wish)
    call.deed.creates(record.name)
    return answer(record, status=201)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.verbs.get_volume, call.grant, call.ref))


async def delete(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.delete_volume, call.grant, call.ref)
    return empty()

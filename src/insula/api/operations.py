# SPDX-License-Identifier: Apache-2.0
"""Operations: list, look, follow to the end, cancel."""

from aiohttp import web

from insula.api.call import Call, answer, line, lines
from insula.model.grant import scope


async def list_all(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.operations.list, scope(call.grant)))


async def inspect(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.operations.get, scope(call.grant), call.ref))


async def follow(call: Call) -> web.StreamResponse:
    tenant = scope(call.grant)
    await call.run(call.api.operations.get, tenant, call.ref)
    response = await lines(call)
    async for record in call.api.operations.follow(tenant, call.ref):
        await response.write(line(record))
    return response


async def cancel(call: Call) -> web.StreamResponse:
    return answer(await call.run(call.api.operations.cancel, scope(call.grant), call.ref))

# SPDX-License-Identifier: Apache-2.0
"""Operations: list, look, follow to the end, cancel."""

from aiohttp import web

from insula.api.call import Call, answer, line, lines
from insula.model.grant import scope
from insula.model.record import OperationRecord


async def list_all(call: Call) -> web.StreamResponse:
    found = await call.run(call.api.operations.list, scope(call.grant))
    return answer([told(call, each) for each in found])


async def inspect(call: Call) -> web.StreamResponse:
    return answer(told(call, await call.run(call.api.operations.get, scope(call.grant), call.ref)))


async def follow(call: Call) -> web.StreamResponse:
    tenant = scope(call.grant)
    await call.run(call.api.operations.get, tenant, call.ref)
    response = await lines(call)
    async for record in call.api.operations.follow(tenant, call.ref):
        await response.write(line(told(call, record)))
    return response


async def cancel(call: Call) -> web.StreamResponse:
    return answer(told(call, await call.run(call.api.operations.cancel, scope(call.grant), call.ref)))


def told(call: Call, operation: OperationRecord) -> OperationRecord:
    """Return what the caller is told of an operation."""
    return call.redaction(operation.tenant).operation(operation)

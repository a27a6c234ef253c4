# SPDX-License-Identifier: Apache-2.0
"""The audit log: one's own part of it, and whether it is as it was written."""

from itertools import islice

from aiohttp import web

from insula.api.bodies import AuditQuery, AuditVerdict
from insula.api.call import Call, answer, lines
from insula.model.grant import scope
from insula.tenant.audit_chain import entries, last_entries, verify

_AT_ONCE = 200


async def read(call: Call) -> web.StreamResponse:
    query = call.query(AuditQuery)
    path, tenant = call.api.audit.path, scope(call.grant)
    found = (
        entries(path, tenant=tenant, since=query.since)
        if query.tail is None
        else last_entries(path, tenant=tenant, since=query.since, count=query.tail)
    )

    def some() -> bytes:
        return b"".join(islice(found, _AT_ONCE))

    response = await lines(call)
    while part := await call.run(some):
        await response.write(part)
    return response


async def check(call: Call) -> web.StreamResponse:
    found = await call.run(verify, call.api.audit.path)
    return answer(AuditVerdict(lines=found.lines, files=found.files, problem=found.problem))

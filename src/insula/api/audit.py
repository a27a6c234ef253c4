# SPDX-License-Identifier: Apache-2.0
"""The audit log: one's own part of it, and whether it is as it was written."""

from aiohttp import web

from insula.api.bodies import AuditQuery, AuditVerdict
from insula.api.call import Call, answer, lines
from insula.tenant.audit_chain import entries, verify
from insula.tenant.check import scope

_AT_ONCE = 200


async def read(call: Call) -> web.StreamResponse:
    query = call.query(AuditQuery)
    found = entries(call.api.audit.path, tenant=scope(call.grant), since=query.since)

    def some() -> bytes:
        return b"".join(line for line, _ in zip(found, range(_AT_ONCE), strict=False))

    response = await lines(call)
    while part := await call.run(some):
        await response.write(part)
    return response


async def check(call: Call) -> web.StreamResponse:
    found = await call.run(verify, call.api.audit.path)
    return answer(AuditVerdict(lines=found.lines, files=found.files, problem=found.problem))

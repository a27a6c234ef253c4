# SPDX-License-Identifier: Apache-2.0
"""The audit log: one's own part of it, and whether it is as it was written.

The log is all tenants': who reads much of it reads at nobody else's cost.  It is looked through from the end on, a block at
a time, so that the loop and others' threads have their turn in between, and each caller in turns with itself (`lanes.py`).
"""

from contextlib import AsyncExitStack
from itertools import islice

from aiohttp import web

from insula.api.bodies import AuditQuery, AuditVerdict
from insula.api.call import Call, answer, lines
from insula.api.lanes import to_its_end
from insula.model.grant import scope
from insula.tenant.audit_chain import Verdict
from insula.tenant.audit_chain import verify as verify_log
from insula.tenant.audit_reading import Wanted, found_backwards

_AT_ONCE = 200
MAX_BYTES = 4 << 20
"""What is held in memory for one reader, about: it may take its time."""
Block = list[bytes]


async def read(call: Call) -> web.StreamResponse:
    query = call.query(AuditQuery)
    is_admin = call.grant.principal.is_admin
    wanted = Wanted(tenant=scope(call.grant), since=query.since, chained=is_admin)
    found = await _last(call, wanted, count=query.tail)
    response = await lines(call)
    parts = iter(reversed(found))
    while part := b"".join(islice(parts, _AT_ONCE)):
        await response.write(part)
    return response


async def _last(call: Call, wanted: Wanted, *, count: int) -> Block:
    """Return the last of the wanted lines, the newest first; of long ones fewer than wanted."""
    found: Block = []
    size, turn = 0, call.api.readings.of(call.grant.principal)
    async with AsyncExitStack() as until_read:
        opening = call.api.audit.opened()
        log = await call.run(opening.__enter__)
        until_read.push(opening)
        blocks = found_backwards(log, wanted)
        while len(found) < count and size < MAX_BYTES:
            async with turn:
                some = await to_its_end(call.run(next, blocks, None))
            if some is None:
                break
            found += some
            size += sum(map(len, some))
    return found[:count]


async def check(call: Call) -> web.StreamResponse:
    found = await call.run(_verify, call)
    return answer(AuditVerdict(lines=found.lines, files=found.files, problem=found.problem))


def _verify(call: Call) -> Verdict:
    with call.api.audit.opened() as log:
        return verify_log(log)

# SPDX-License-Identifier: Apache-2.0
"""Containers: create, list, the steps of their life, and what can be asked about them."""

import asyncio

from aiohttp import web
from msgspec.structs import replace

from insula.api import stopping
from insula.api.bodies import Created, DeleteQuery, Ended, ListQuery, NoQuery, StreamQuery, WaitQuery
from insula.api.call import Call, answer, empty, line, lines
from insula.api.changes import Seen
from insula.api.lanes import to_its_end
from insula.model.errors import BadRequest
from insula.model.grant import scope
from insula.model.lifecycle import ALIVE, Status
from insula.model.record import ContainerRecord
from insula.model.spec import KillWish, RenameWish, ResizeWish, Spec, StopWish

NOT_MODIFIED = 304
STATS_INTERVAL_S = 1.0


async def create(call: Call) -> web.StreamResponse:
    spec = await call.body(Spec)
    record = await call.run(call.api.verbs.create, call.grant, spec)
    call.deed.creates(record.id, name=record.name)
    return answer(Created(id=record.id, name=record.name), status=201)


async def list_all(call: Call) -> web.StreamResponse:
    everything = call.query(ListQuery).all
    records = await call.run(call.api.store.list_containers, scope(call.grant))
    shown = [record for record in records if everything or record.status in ALIVE]
    hidden = {tenant: call.redaction(tenant) for tenant in {record.tenant for record in shown}}
    return answer([hidden[record.tenant].record(record) for record in shown])


async def inspect(call: Call) -> web.StreamResponse:
    call.query(NoQuery)
    record = await call.find()
    return answer(call.redaction(record.tenant).record(record))


async def delete(call: Call) -> web.StreamResponse:
    query = call.query(DeleteQuery)
    verb = call.api.verbs.delete
    await call.run(verb, call.grant, call.ref, force=query.force, volumes=query.volumes)
    return empty()


async def start(call: Call) -> web.StreamResponse:
    if (await call.find()).status in ALIVE:
        return _as_it_was(call)
    await call.run(call.api.verbs.start, call.grant, call.ref)
    return empty()


async def stop(call: Call) -> web.StreamResponse:
    wish = await call.body(StopWish, may_be_empty=True)
    # Also of one that does not run: it may be about to be restarted.
    return empty() if await stopping.stop(call, wish) else _as_it_was(call)


def _as_it_was(call: Call) -> web.StreamResponse:
    call.deed.finds_it_so()
    return empty(NOT_MODIFIED)


async def restart(call: Call) -> web.StreamResponse:
    wish = await call.body(StopWish, may_be_empty=True)
    await stopping.restart(call, wish)
    return empty()


async def kill(call: Call) -> web.StreamResponse:
    wish = await call.body(KillWish, may_be_empty=True)
    await call.run(call.api.verbs.kill, call.grant, call.ref, signal=wish.signal)
    return empty()


async def pause(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.pause, call.grant, call.ref)
    return empty()


async def unpause(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.unpause, call.grant, call.ref)
    return empty()


async def rename(call: Call) -> web.StreamResponse:
    wish = await call.body(RenameWish)
    await call.run(call.api.verbs.rename, call.grant, call.ref, name=wish.name)
    return empty()


async def resize(call: Call) -> web.StreamResponse:
    wish = await call.body(ResizeWish)
    await call.run(call.api.verbs.resize, call.grant, call.ref, wish=wish)
    return empty()


async def wait(call: Call) -> web.StreamResponse:
    condition = call.query(WaitQuery).condition
    if condition not in ("exited", "removed"):
        raise BadRequest(f"cannot wait for `{condition}`", hint="exited or removed")
    record = await call.find()
    with call.api.changes.watch(record.id) as seen:
        # Read again: what happened between the first look and the watch was told to nobody.
        record = await call.find()
        ended = await _wait(record, seen, until_removed=condition == "removed")
        return answer(replace(ended, error=call.redaction(record.tenant).text(ended.error)))


async def _wait(record: ContainerRecord, seen: Seen, *, until_removed: bool) -> Ended:
    while until_removed or record.status in ALIVE or record.status is Status.RESTORING:
        change = await seen.get()
        if change is None:
            break
        record = change
    if record.status is Status.MOVED:
        return Ended(exit_code=None, error=f"moved to host {record.owner}")
    return Ended(exit_code=record.exit_code, error=record.error)


async def stats(call: Call) -> web.StreamResponse:
    query = call.query(StreamQuery)
    first = await call.run(call.api.verbs.stats, call.grant, call.ref)
    if not query.stream:
        return answer(first)
    response = await lines(call)
    await response.write(line(first))
    while (await call.find()).status in ALIVE:
        await asyncio.sleep(STATS_INTERVAL_S)
        await response.write(line(await call.run(call.api.verbs.stats, call.grant, call.ref)))
    return response


async def all_stats(call: Call) -> web.StreamResponse:
    query = call.query(StreamQuery)
    first = await call.run(call.api.verbs.all_stats, call.grant)
    if not query.stream:
        return answer(first)
    response = await lines(call)
    await response.write(line(first))
    while True:
        await asyncio.sleep(STATS_INTERVAL_S)
        await response.write(line(await call.run(call.api.verbs.all_stats, call.grant)))


async def top(call: Call) -> web.StreamResponse:
    record = await call.find()
    told = call.redaction(record.tenant).words
    return answer(await call.run(call.api.verbs.top, call.grant, record.id, told=told))


async def diff(call: Call) -> web.StreamResponse:
    record = await call.find()
    async with call.api.readings.of(call.grant.principal):
        return await to_its_end(call.run(_changes, call, record))


def _changes(call: Call, record: ContainerRecord) -> web.Response:
    found = call.api.verbs.diff(call.grant, record.id)
    hidden = call.redaction(record.tenant)
    told = (replace(each, path=hidden.path(each.path)) for each in found.changes)
    answered = answer(list(dict.fromkeys(told)))
    if not found.is_complete:
        answered.headers["X-Insula-Incomplete"] = "1"
    return answered

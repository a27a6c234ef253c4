# SPDX-License-Identifier: Apache-2.0
"""What is seen of containers: their events as they come, their system calls counted, and changes of their state."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import web

from insula.api.bodies import NoQuery, Query, StreamQuery
from insula.api.call import Call, answer, line, lines
from insula.api.watch import Counting
from insula.model.change import Change
from insula.model.errors import BadRequest
from insula.model.grant import scope
from insula.model.monitor import Began, Ended, EventKind, TraceWish
from insula.monitor.metrics import CONTENT_TYPE, exposition

Held = TypeVar("Held")

INTERVAL_S = 1.0
"""Between two samples of a stream of counters."""
MAX_LINES = 500
"""Events put into words at a time: others' requests are served between."""


class TraceQuery(Query, kw_only=True, frozen=True):
    """A `TraceWish`; each may be said several times, and of the first four several words with commas between."""

    kinds: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    pids: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


_PLAIN = ("kinds", "calls", "errors", "pids")
"""In these words there are no commas."""
_PLACE = re.compile(r"`\$\.(\w+)\[(\d+)\]`$")
"""Where msgspec says that something is wrong."""


async def trace(call: Call) -> web.StreamResponse:
    return await _tell(call, _wish(call.query(TraceQuery)))


async def peer_trace(call: Call) -> web.StreamResponse:
    """For the host that a container comes from: what those who watched it there go on seeing."""
    return await _tell(call, await call.body(TraceWish))


async def _tell(call: Call, wish: TraceWish) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    ready.set()

    def notify() -> None:
        if not ready.is_set() and not loop.is_closed():
            loop.call_soon_threadsafe(ready.set)

    watching = call.api.monitor.trace(call.grant, call.ref, wish=wish, notify=notify)
    async with _in_thread(call, watching) as source:
        response = await lines(call)
        await response.write(line(Began()))
        while True:
            await ready.wait()
            ready.clear()
            while found := source.read(at_most=MAX_LINES):
                await response.write(b"".join(map(line, found)))
                if isinstance(found[-1], Ended):
                    return response
                await asyncio.sleep(0)


def _wish(query: TraceQuery) -> TraceWish:
    words = {name: getattr(query, name) for name in TraceQuery.__struct_fields__}
    words |= {name: [word for one in words[name] for word in one.split(",") if word] for name in _PLAIN}
    try:
        return msgspec.convert(words, TraceWish, strict=False)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        what = f"{place[1]} `{words[place[1]][int(place[2])]}`" if place else str(error)
        hint = f"kinds are {', '.join(EventKind)}; pids are numbers"
        raise BadRequest(f"cannot trace {what}", hint=hint) from None


async def events(call: Call) -> web.StreamResponse:
    """What happens to the caller's containers, from now on."""
    call.query(NoQuery)
    with call.api.changes.read_all(tenant=scope(call.grant)) as changes:
        response = await lines(call)
        while True:
            told = await changes.get()
            if isinstance(told, Change):
                told = call.redaction(told.tenant).change(told)
            await response.write(line(told))


async def metrics(call: Call) -> web.StreamResponse:
    """Figures of the caller's containers, for Prometheus."""
    call.query(NoQuery)

    def scrape() -> bytes:
        # Sinks are the host's business: their names tell where it sends what.
        is_admin = call.grant.principal.is_admin
        sinks = (*call.api.exports.counts(), *call.api.rules.counts()) if is_admin else ()
        return exposition(
            call.api.verbs.all_stats(call.grant),
            call.api.monitor.counts(call.grant),
            lost=call.api.monitor.lost_events(call.grant),
            sinks=sinks,
            drifts=call.api.drifts.counts(call.grant),
        )

    return web.Response(body=await call.run(scrape), headers={"Content-Type": CONTENT_TYPE})


class CallsQuery(StreamQuery, kw_only=True, frozen=True):
    exact: bool = False
    """Count each call, not those of a fifth of the time; without `stream` that is done anyway."""

    @property
    def is_exact(self) -> bool:
        return self.exact or not self.stream


class AllCallsQuery(CallsQuery, kw_only=True, frozen=True):
    only: str = ""
    """Ids with commas between; empty: all."""


async def calls(call: Call) -> web.StreamResponse:
    query = call.query(CallsQuery)
    counting = call.api.monitor.counting(call.grant, call.ref, is_exact=query.is_exact)
    return await _count(call, counting, is_streamed=query.stream)


async def all_calls(call: Call) -> web.StreamResponse:
    query = call.query(AllCallsQuery)
    only = frozenset(filter(None, query.only.split(",")))
    counting = call.api.monitor.counting(call.grant, "", only=only, is_exact=query.is_exact)
    return await _count(call, counting, is_streamed=query.stream)


async def _count(
    call: Call, manager: AbstractContextManager[Counting], *, is_streamed: bool
) -> web.StreamResponse:
    """Count while the request is open: a sample each second; without `stream` one, after a second."""
    async with _in_thread(call, manager) as counting:
        if not is_streamed:
            await asyncio.sleep(INTERVAL_S)
            return answer(await call.run(counting.read))
        response = await lines(call)
        while True:
            await response.write(line(await call.run(counting.read)))
            await asyncio.sleep(INTERVAL_S)


@asynccontextmanager
async def _in_thread(call: Call, manager: AbstractContextManager[Held]) -> AsyncIterator[Held]:
    """Enter and leave in the caller's threads: the kernel may take milliseconds to attach a program."""
    held = await call.run(manager.__enter__)
    try:
        yield held
    finally:
        await asyncio.shield(call.run(manager.__exit__, None, None, None))

# SPDX-License-Identifier: Apache-2.0
"""Attach, exec and logs: what a program says, and what it is told."""

import asyncio
import functools
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

from aiohttp import web

from insula.api.bodies import MAX_TAIL, AttachQuery, ExecStarted, LogsQuery
from insula.api.call import Call, answer, line, lines
from insula.api.handover import hand_over, preamble
from insula.api.verbs import AttachRequest, LogCursor, LogWish
from insula.model.errors import BadRequest, ContainerNotFound
from insula.model.grant import Action
from insula.model.lifecycle import ALIVE
from insula.model.spec import ExecSpec
from insula.model.stream import UPGRADE

LOG_POLL_S = 0.05
"""The spawner writes logs without telling anybody; a poll is one read at the end of a file."""
_TAILS = f"a number up to {MAX_TAIL}, or all"


async def attach(call: Call) -> web.StreamResponse:
    query = call.query(AttachQuery)
    if query.start:
        call.require(Action.CONTROL)
    verbs = call.api.verbs

    def give(descriptor: int) -> None:
        request = AttachRequest(
            fd=descriptor,
            preamble=preamble(UPGRADE),
            stdin=query.stdin,
            rows=query.rows,
            columns=query.columns,
            logs=query.logs,
        )
        if query.start:
            verbs.start(call.grant, call.ref, attach=request)
        else:
            verbs.attach(call.grant, call.ref, attach=request)

    return await hand_over(call, give, upgrade=UPGRADE)


async def execute(call: Call) -> web.StreamResponse:
    spec = await call.body(ExecSpec)
    verb = call.api.verbs.execute
    if spec.detach:
        return answer(ExecStarted(id=await call.run(verb, call.grant, call.ref, spec=spec, attach=None)))

    def give(descriptor: int) -> str:
        request = AttachRequest(
            fd=descriptor,
            preamble=preamble(UPGRADE),
            stdin=spec.stdin_open,
            rows=spec.rows,
            columns=spec.columns,
        )
        return verb(call.grant, call.ref, spec=spec, attach=request)

    return await hand_over(call, give, upgrade=UPGRADE)


async def logs(call: Call) -> web.StreamResponse:
    query = call.query(LogsQuery)
    wish = LogWish(
        tail=_tail(query.tail),
        since=query.since,
        until=query.until,
        stdout=query.stdout,
        stderr=query.stderr,
        follow=query.follow,
    )
    async with opened(call, wish) as cursor:
        response = await lines(call)
        # What is there already may be much: of that each caller reads one batch at a time.
        turn: AbstractAsyncContextManager[None] = call.api.readings.of(call.grant.principal)
        while True:
            # Asked before reading, so that what was written until the end is read.
            ended = not query.follow or not await _is_alive(call)
            while (found := await _batch(call, cursor, turn=turn)) is not None:
                if found:
                    await response.write(found)
            if ended:
                return response
            turn = nullcontext()
            await asyncio.sleep(LOG_POLL_S)


async def _batch(call: Call, cursor: LogCursor, *, turn: AbstractAsyncContextManager[None]) -> bytes | None:
    """Return the lines that are new, some of them at once, as they are sent.  None: there are none for now."""
    async with turn:
        return await call.run(_encoded, cursor)


def _encoded(cursor: LogCursor) -> bytes | None:
    found = cursor.read()
    return None if found is None else b"".join(map(line, found))


@asynccontextmanager
async def opened(call: Call, wish: LogWish) -> AsyncIterator[LogCursor]:
    """Open a log for a block, which may be cancelled at any moment: while it is being opened, or is read in a thread."""
    opening = call.threads.submit(call.api.verbs.open_logs, call.grant, call.ref, wish=wish)
    try:
        yield await asyncio.wrap_future(opening)
    finally:
        opening.add_done_callback(functools.partial(_close_in_thread, call.threads))


def _close_in_thread(threads: Executor, opening: Future[LogCursor]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        with suppress(RuntimeError):  # insulad ends, and closes everything
            threads.submit(opening.result().close)


def _tail(word: str) -> int | None:
    if word == "all":
        return None
    if not (word.isascii() and word.isdigit()):
        raise BadRequest(f"cannot show the last `{word}` lines: not a number", hint=_TAILS)
    if len(word) > len(str(MAX_TAIL)) or int(word) > MAX_TAIL:
        raise BadRequest("cannot show so many of the last lines: no log has them", hint=_TAILS)
    return int(word)


async def _is_alive(call: Call) -> bool:
    try:
        return (await call.find()).status in ALIVE
    except ContainerNotFound:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Stop and restart: the time that a program is given to end passes without holding a thread.

    begin_stop ── signal sent ──► changes are awaited ── time is over ──► force_stop (KILL) ──► awaited again

A client that goes away does not call the stop off: what began is done.  Source: docker's API, which does the same.
"""

import asyncio
from collections.abc import Coroutine

from insula.api.call import Call
from insula.api.changes import Seen
from insula.model.errors import WrongState
from insula.model.lifecycle import ALIVE
from insula.model.record import ContainerRecord
from insula.model.spec import StopWish
from insula.runtime.stop import KILL_SECONDS


async def stop(call: Call, wish: StopWish) -> bool:
    """Ask the program to end; kill it when it does not within the time.

    Returns: False if it did not run.  Raises: WrongState if it hangs in the kernel.
    """
    return await _to_the_end(call, _stop(call, wish))


async def restart(call: Call, wish: StopWish) -> None:
    """Stop, if it runs, and start."""
    await _to_the_end(call, _restart(call, wish))


async def _to_the_end(call: Call, work: Coroutine[None, None, bool]) -> bool:
    task = asyncio.create_task(work)
    call.api.stopping.add(task)
    task.add_done_callback(call.api.stopping.discard)
    return await asyncio.shield(task)


async def _restart(call: Call, wish: StopWish) -> bool:
    did_run = await _stop(call, wish)
    await call.run(call.api.verbs.start, call.grant, call.ref)
    return did_run


async def _stop(call: Call, wish: StopWish) -> bool:
    verbs = call.api.verbs
    found = await call.find()
    with call.api.changes.watch(found.id) as seen:
        begun = await call.run(verbs.begin_stop, call.grant, found.id, wish=wish)
        if begun is None:
            return False
        if await _ends(seen, begun.record, seconds=begun.seconds):
            return True
        await call.run(verbs.force_stop, call.grant, begun)
        if not await _ends(seen, begun.record, seconds=KILL_SECONDS):
            raise WrongState(f"cannot stop `{begun.record.name}`: it does not end, even killed")
    return True


async def _ends(seen: Seen, record: ContainerRecord, *, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while True:
                change = await seen.get()
                if change is None or change.status not in ALIVE or change.pid != record.pid:
                    return True
    except TimeoutError:
        return False

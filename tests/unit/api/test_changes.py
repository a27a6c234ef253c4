# SPDX-License-Identifier: Apache-2.0
"""Who reads what happens to containers too slowly is told how much was missed, of what is theirs."""

import asyncio

from insula.api.changes import MAX_WAITING, Changes, Reader
from insula.model.change import Change, ChangeLine
from insula.model.monitor import Lost


def change(tenant: str, number: int) -> Change:
    return Change(at=float(number), container="id", name="web", tenant=tenant, event="started")


async def announced(changes: Changes, *told: Change) -> None:
    for each in told:
        changes.announce(each)
    await asyncio.sleep(0)


async def read(reader: Reader, count: int) -> list[ChangeLine]:
    return [await asyncio.wait_for(reader.get(), 30) for _ in range(count)]


def test_what_a_slow_reader_missed_is_told_before_the_rest() -> None:
    async def run() -> None:
        changes = Changes(asyncio.get_running_loop())
        with changes.read_all(tenant=None) as reader:
            await announced(changes, *(change("alice", number) for number in range(MAX_WAITING + 3)))
            assert await read(reader, 2) == [Lost(events=3), change("alice", 3)]
            rest = await read(reader, MAX_WAITING - 1)
            assert rest[-1] == change("alice", MAX_WAITING + 2)
            await announced(changes, change("alice", 0))
            assert await read(reader, 1) == [change("alice", 0)]

    asyncio.run(run())


def test_others_changes_take_no_room_and_are_not_counted() -> None:
    async def run() -> None:
        changes = Changes(asyncio.get_running_loop())
        with changes.read_all(tenant="alice") as reader:
            flood = (change("bob", number) for number in range(MAX_WAITING + 3))
            await announced(changes, change("alice", 0), *flood, change("alice", 1))
            assert await read(reader, 2) == [change("alice", 0), change("alice", 1)]

    asyncio.run(run())

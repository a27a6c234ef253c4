# SPDX-License-Identifier: Apache-2.0
"""Threads by caller: who fills his own does not hold up others."""

import asyncio
import threading

import pytest

from insula.api.lanes import READING_BURST_S, READING_SHARE, Lanes, Turns
from insula.model.grant import Kind, Principal, Role
from waiting import DEADLINE_S

WIDTH = 2
ALICE, BOB = Principal(name="alice", uid=1001), Principal(name="bob", uid=1002)
PEER = Principal(name="alice", kind=Kind.HOST)


def test_a_full_lane_holds_up_nobody_else() -> None:
    lanes, gate = Lanes("test", width=WIDTH), threading.Event()
    try:
        waiting = [lanes.of(ALICE).submit(gate.wait, DEADLINE_S) for _ in range(100)]
        assert [lanes.of(each).submit(int).result(DEADLINE_S) for each in (BOB, PEER)] == [0, 0]
        assert not any(each.done() for each in waiting)
        gate.set()
        assert all(each.result(DEADLINE_S) for each in waiting)
    finally:
        gate.set()
        lanes.close()


def test_a_caller_keeps_his_lane_under_each_of_his_tenants() -> None:
    lanes = Lanes("test", width=WIDTH)
    assert lanes.of(ALICE) is lanes.of(Principal(name="else", uid=1001, role=Role.ADMIN))
    assert lanes.of(ALICE) is not lanes.of(PEER)
    lanes.close()


def test_a_caller_reads_one_batch_at_a_time_and_holds_up_nobody_else() -> None:
    turns = Turns()

    async def go() -> None:
        async with turns.of(ALICE):
            again = asyncio.create_task(turns.of(ALICE).__aenter__())
            async with turns.of(BOB):
                await asyncio.sleep(0)
                assert not again.done()
            again.cancel()
            await asyncio.wait({again})
        async with turns.of(ALICE):  # who went while it waited has left the turn to others
            pass

    asyncio.run(asyncio.wait_for(go(), DEADLINE_S))


def test_who_has_read_long_waits_for_his_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        await sleep(0)

    monkeypatch.setattr("insula.api.lanes.time.monotonic", lambda: now[0])
    monkeypatch.setattr("insula.api.lanes.asyncio.sleep", noted)

    async def go() -> None:
        turn = Turns().of(ALICE)
        for _ in range(4):
            async with turn:
                now[0] += READING_BURST_S

    asyncio.run(go())
    assert slept[0] == slept[1] == 0.0
    assert sum(slept) > 0.9 * 2 * READING_BURST_S / READING_SHARE

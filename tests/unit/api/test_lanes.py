# SPDX-License-Identifier: Apache-2.0
"""Threads by caller: who fills his own does not hold up others."""

import threading

from insula.api.lanes import Lanes
from insula.model.grant import Kind, Principal, Role

DEADLINE_S = 10.0
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

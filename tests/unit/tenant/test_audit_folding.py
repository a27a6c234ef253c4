# SPDX-License-Identifier: Apache-2.0
"""The budget of lines: a flood is counted, what was changed and others' lines are not."""

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from insula.model.grant import Action, Principal
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import MAX_PATH, Entry
from insula.tenant.audit_folding import BURST, LINES_PER_S, Folding

LOOK = Entry(
    principal=Principal(name="alice", uid=1000),
    action=Action.READ,
    method="GET",
    path="/v1/containers",
    tenant="alice",
    result="ok",
)
CHANGE = replace(LOOK, action=Action.CONTROL, method="POST")


def spent() -> Folding:
    """A tenant that has no lines left."""
    folding = Folding()
    while not folding.takes(LOOK, now=0.0):
        pass
    folding.taken_out()
    return folding


def test_within_the_budget_each_has_a_line() -> None:
    folding = Folding()
    assert [folding.takes(LOOK, now=0.0) for _ in range(int(BURST) + 1)] == [*[False] * int(BURST), True]
    assert not folding.takes(LOOK, now=1 / LINES_PER_S)
    assert folding.takes(LOOK, now=1 / LINES_PER_S)


def test_a_change_always_has_a_line_and_a_failed_one_not() -> None:
    folding = spent()
    assert not folding.takes(CHANGE, now=0.0)
    assert folding.takes(replace(CHANGE, result="conflict"), now=0.0)


def test_others_have_their_own_budget() -> None:
    assert not spent().takes(replace(LOOK, principal=Principal(name="bob", uid=1001)), now=0.0)


def test_what_differs_is_not_told() -> None:
    folding = spent()
    for number, seconds in enumerate((0.1, 0.3, 0.2)):
        assert folding.takes(replace(LOOK, path=f"/{number}", seconds=seconds, pid=7), now=0.0)
    assert folding.taken_out() == [replace(LOOK, path="*", seconds=0.3, times=3, pid=7)]
    assert folding.taken_out() == []


def test_results_and_users_are_told_apart() -> None:
    folding = spent()
    carol = Principal(name="carol", tenant="alice", uid=1002)
    for entry in (LOOK, replace(LOOK, result="denied"), replace(LOOK, principal=carol), LOOK):
        assert folding.takes(entry, now=0.0)
    assert sorted(each.times for each in folding.taken_out()) == [1, 1, 2]


@given(st.lists(st.tuples(st.sampled_from(["ok", "denied"]), st.text(max_size=3)), max_size=400))
def test_every_request_is_told_once(requests: list[tuple[str, str]]) -> None:
    folding, lines = Folding(), 0
    for result, path in requests:
        lines += not folding.takes(replace(LOOK, result=result, path=path), now=0.0)
    assert lines + sum(each.times for each in folding.taken_out()) == len(requests)


def test_what_was_counted_is_written_at_the_end(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    for _ in range(int(BURST) * 2):
        audit.record(LOOK)
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert sum(line.get("times", 1) for line in lines) == 2 * BURST
    assert len(lines) < 1.5 * BURST


def test_a_path_is_told_so_far(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.record(replace(LOOK, path="/" * (MAX_PATH + 1)))
    audit.close()
    assert json.loads((tmp_path / "audit.log").read_text())["path"] == "/" * MAX_PATH + "…"

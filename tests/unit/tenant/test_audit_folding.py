# SPDX-License-Identifier: Apache-2.0
"""The budgets of lines: a flood is counted, others' lines are not, and the log lasts a day whatever one tenant does."""

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from insula.model.grant import Action, Principal, Role
from insula.tenant import audit
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import MAX_PATH, UNCHANGED, Entry
from insula.tenant.audit_files import KEPT_FILES
from insula.tenant.audit_folding import CHANGES, COUNTS, LINE_BYTES, LOOKS, Folding

DAY_S = 24 * 3600

LOOK = Entry(
    principal=Principal(name="alice", uid=1000),
    action=Action.READ,
    method="GET",
    path="/v1/containers",
    tenant="alice",
    result="ok",
)
CHANGE = replace(LOOK, action=Action.CONTROL, method="POST")
UNCHANGED = replace(CHANGE, result=UNCHANGED)


def spent() -> Folding:
    """A tenant that has no lines left."""
    folding = Folding()
    while not folding.takes(LOOK, now=0.0):
        pass
    folding.emptied()
    return folding


def test_within_the_budget_each_has_a_line() -> None:
    folding = Folding()
    assert [folding.takes(LOOK, now=0.0) for _ in range(LOOKS.burst + 1)] == [*[False] * LOOKS.burst, True]
    assert not folding.takes(LOOK, now=1 / LOOKS.per_s)
    assert folding.takes(LOOK, now=1 / LOOKS.per_s)


def test_a_change_has_a_line_whatever_was_looked_at_and_a_failed_one_not() -> None:
    folding = spent()
    assert not folding.takes(CHANGE, now=0.0)
    assert folding.takes(replace(CHANGE, result="conflict"), now=0.0)


def test_what_changes_nothing_is_a_look() -> None:
    folding = Folding()
    lines = sum(not folding.takes(UNCHANGED, now=number / 10_000) for number in range(10_000))
    lines += len(folding.taken_out(now=1.0))
    assert lines <= 210


def test_changes_beyond_their_own_budget_are_counted_apart_from_looks() -> None:
    folding = spent()
    made = replace(CHANGE, made="1", made_name="one")
    lines = sum(not folding.takes(made, now=0.0) for _ in range(CHANGES.burst + 3))
    folding.takes(UNCHANGED, now=0.0)
    assert lines == CHANGES.burst
    assert folding.takes(replace(made, path="/other", made="2", made_name="two"), now=0.0)
    assert folding.emptied() == [
        replace(CHANGE, path="*", made="*", made_name="*", times=4),
        UNCHANGED,
    ]


def test_each_change_of_an_administrator_has_a_line() -> None:
    folding, admin = Folding(), Principal(name="root", uid=0, role=Role.ADMIN)
    assert not any(folding.takes(replace(CHANGE, principal=admin), now=0.0) for _ in range(2 * CHANGES.burst))


def test_a_tenant_needs_more_than_a_day_to_turn_the_log_over() -> None:
    most = sum(each.burst + each.per_s * DAY_S for each in (LOOKS, CHANGES, COUNTS))
    assert most * LINE_BYTES < (KEPT_FILES - 1) * audit.MAX_BYTES


def test_a_long_line_counts_as_several() -> None:
    folding, long = Folding(), replace(LOOK, path="/" + "é" * (MAX_PATH - 1))
    lines = sum(not folding.takes(long, now=0.0) for _ in range(LOOKS.burst))
    assert 0 < lines * len(json.dumps(long.fields())) <= LOOKS.burst * LINE_BYTES


def test_the_lines_of_what_was_counted_have_a_budget_and_wait_for_it() -> None:
    folding = Folding()
    for number in range(2 * COUNTS.burst):
        folding.add(replace(LOOK, result=f"error{number}"))
    assert len(folding.taken_out(now=0.0)) == COUNTS.burst
    assert [each.result for each in folding.taken_out(now=1.0)] == [
        f"error{COUNTS.burst + number}" for number in range(COUNTS.per_s)
    ]
    assert len(folding.emptied()) == COUNTS.burst - COUNTS.per_s
    assert folding.is_empty


def test_others_have_their_own_budget() -> None:
    assert not spent().takes(replace(LOOK, principal=Principal(name="bob", uid=1001)), now=0.0)


def test_what_differs_is_not_told() -> None:
    folding = spent()
    for number, seconds in enumerate((0.1, 0.3, 0.2)):
        assert folding.takes(replace(LOOK, path=f"/{number}", seconds=seconds, pid=7), now=0.0)
    assert folding.taken_out(now=0.0) == [replace(LOOK, path="*", seconds=0.3, times=3, pid=7)]
    assert folding.taken_out(now=0.0) == []


def test_results_and_users_are_told_apart() -> None:
    folding = spent()
    carol = Principal(name="carol", tenant="alice", uid=1002)
    for entry in (LOOK, replace(LOOK, result="denied"), replace(LOOK, principal=carol), LOOK):
        assert folding.takes(entry, now=0.0)
    assert sorted(each.times for each in folding.taken_out(now=0.0)) == [1, 1, 2]


@given(st.lists(st.tuples(st.sampled_from(["ok", "denied"]), st.text(max_size=3)), max_size=400))
def test_every_request_is_told_once(requests: list[tuple[str, str]]) -> None:
    folding, lines = Folding(), 0
    for result, path in requests:
        lines += not folding.takes(replace(LOOK, result=result, path=path), now=0.0)
    assert lines + sum(each.times for each in folding.taken_out(now=0.0)) == len(requests)


def test_what_was_counted_is_written_at_the_end(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    for _ in range(2 * LOOKS.burst):
        audit.record(LOOK)
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert sum(line.get("times", 1) for line in lines) == 2 * LOOKS.burst
    assert len(lines) < 1.5 * LOOKS.burst


def test_a_path_is_told_so_far(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    audit.record(replace(LOOK, path="/" * (MAX_PATH + 1)))
    audit.close()
    assert json.loads((tmp_path / "audit.log").read_text())["path"] == "/" * MAX_PATH + "…"

# SPDX-License-Identifier: Apache-2.0
"""Spans: parts lie within their whole, and know it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model import span
from insula.model.errors import MigrationFailed
from insula.model.span import Parent, Span, Tracer, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_phases_are_parts_of_what_goes_on() -> None:
    told: list[Span] = []
    with Tracer(told.append).root("migrate", attributes={"target": "beta"}) as whole:
        span.enter_phase("freeze")
        span.enter_phase("commit")
        assert whole is not None
        whole.note({"seconds": 1.0})
    freeze, commit, root = told
    assert [each.name for each in told] == ["freeze", "commit", "migrate"]
    assert {each.trace_id for each in told} == {root.trace_id}
    assert (freeze.parent_id, commit.parent_id, root.parent_id) == (root.span_id, root.span_id, "")
    assert root.begun_ns <= freeze.begun_ns <= freeze.ended_ns <= commit.ended_ns <= root.ended_ns
    assert root.attributes == {"target": "beta", "seconds": 1.0}
    assert span.current() is None


def test_a_failure_is_told_by_its_code() -> None:
    told: list[Span] = []
    with pytest.raises(MigrationFailed), Tracer(told.append).root("migrate"):
        span.enter_phase("freeze")
        raise MigrationFailed("no")
    assert {each.name: each.error for each in told} == {
        "freeze": MigrationFailed.code,
        "migrate": MigrationFailed.code,
    }


def test_a_trace_goes_on_on_another_host() -> None:
    here: list[Span] = []
    there: list[Span] = []
    with Tracer(here.append).root("migrate"):
        words = span.traceparent()
        with Tracer(there.append).root("receive", parent=words):
            pass
    assert there[0].trace_id == here[0].trace_id
    assert there[0].parent_id == here[0].span_id
    assert there[0].is_of_peer


def test_a_part_in_another_thread() -> None:
    told: list[Span] = []

    def work(whole: span.OpenSpan | None) -> None:
        with span.part_of(whole, "move"):
            span.enter_phase("freeze")

    with Tracer(told.append).root("drain"):
        thread = threading.Thread(target=work, args=(span.current(),))
        thread.start()
        thread.join()
    freeze, move, drain = told
    assert (freeze.parent_id, move.parent_id) == (move.span_id, drain.span_id)


def test_what_has_ended_or_was_dropped_is_told_no_more() -> None:
    told: list[Span] = []
    with Tracer(told.append).root("receive"):
        span.end()
        span.enter_phase("cleanup")
    with Tracer(told.append).root("dropped") as root:
        assert root is not None
        root.drop()
    assert [each.name for each in told] == ["receive"]


def test_nobody_traces() -> None:
    with Tracer().root("migrate") as root:
        span.enter_phase("freeze")
        assert root is None
        assert span.traceparent() == ""
        with span.part_of(root, "part") as part:
            assert part is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-00", Parent(TRACE, SPAN)),
        (f"cc-{TRACE}-{SPAN}-01-more", Parent(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        ("", None),
    ],
)
def test_traceparent(text: str, found: Parent | None) -> None:
    assert parse(text) == found


@given(st.text())
def test_nonsense_is_no_parent(text: str) -> None:
    assert parse(text) is None

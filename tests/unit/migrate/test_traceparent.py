# SPDX-License-Identifier: Apache-2.0
"""A trace is no reason to refuse a move: hosts that know nothing of it, and nonsense."""

import json

import pytest

from insula.model.migration import Recall, decode, encode
from insula.model.span import Span, Tracer


def test_a_host_that_knows_no_traces_says_nothing_of_them() -> None:
    words = json.loads(encode(Recall(container="c")))
    del words["traceparent"]
    assert decode(json.dumps(words).encode()) == Recall(container="c")


def test_what_a_newer_host_adds_is_ignored() -> None:
    words = json.loads(encode(Recall(container="c"))) | {"tracestate": "vendor=1"}
    assert decode(json.dumps(words).encode()) == Recall(container="c")


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 100_000]
)
def test_nonsense_begins_a_trace_of_its_own(traceparent: str) -> None:
    told: list[Span] = []
    with Tracer(told.append).root("receive", parent=traceparent):
        pass
    assert told[0].parent_id == ""
    assert not told[0].is_of_peer

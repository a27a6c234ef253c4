# SPDX-License-Identifier: Apache-2.0
"""What of a container's events somebody asks for, as it stands behind the `?`."""

import re

import pytest

from insula.api.monitor import TraceQuery, _wish
from insula.model.errors import BadRequest
from insula.model.monitor import EventKind, TraceWish


def test_patterns_are_taken_as_they_are_and_words_may_stand_together() -> None:
    query = TraceQuery(
        kinds=("exec,exit", "oom"), pids=("1,2",), commands=("a,b",), paths=("/tmp/a,b*", "/etc/*")
    )
    assert _wish(query) == TraceWish(
        kinds=(EventKind.EXEC, EventKind.EXIT, EventKind.OOM),
        pids=(1, 2),
        commands=("a,b",),
        paths=("/tmp/a,b*", "/etc/*"),
    )


@pytest.mark.parametrize(
    ("query", "what"),
    [(TraceQuery(kinds=("exec,bogus",)), "kinds `bogus`"), (TraceQuery(pids=("1", "one")), "pids `one`")],
)
def test_what_is_none_is_refused(query: TraceQuery, what: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"cannot trace {what}")) as refused:
        _wish(query)
    assert "throttle" in refused.value.hint

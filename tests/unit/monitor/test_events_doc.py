# SPDX-License-Identifier: Apache-2.0
"""`docs/events.md` names every kind, and for each a test that there is."""

import re
from pathlib import Path

import pytest

from insula.model.monitor import EventKind

ROOT = Path(__file__).resolve().parents[3]
ROWS = {
    row[0]: row[-1]
    for line in (ROOT / "docs/events.md").read_text().splitlines()
    if (row := [cell.strip(" `") for cell in line.strip("|").split("|")]) and row[0] in list(EventKind)
}
TESTS = set(
    re.findall(r"^def (test_\w+)", (ROOT / "tests/system/test_event_kinds.py").read_text(), re.MULTILINE)
)


def test_every_kind_stands_there() -> None:
    assert set(ROWS) == set(EventKind)


@pytest.mark.parametrize("kind", sorted(set(EventKind) - {EventKind.DRIFT}))
def test_its_tests_are_there(kind: EventKind) -> None:
    named = set(re.findall(r"test_\w+", ROWS[kind]))
    assert named
    assert named <= TESTS

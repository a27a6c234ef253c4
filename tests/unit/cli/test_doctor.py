# SPDX-License-Identifier: Apache-2.0
"""What `insula doctor` prints, literally."""

import os

import pytest

from insula.cli.commands.doctor import COLUMNS, render, run
from insula.kernel.probe import Feature, Finding, State

FEATURE = Feature(
    name="criu",
    needed_for="checkpoint, restore, migrate",
    required=False,
    consequence="no checkpoint, no restore, no migration",
    cure="insula setup",
    probe=lambda: "",
)
REQUIRED = Feature(
    name="overlay",
    needed_for="root file systems",
    required=True,
    consequence="none runs",
    cure="",
    probe=lambda: "",
)
GOLDEN = """\
FEATURE                    STATE    NEEDED FOR, DETAIL
criu                       found    checkpoint, restore, migrate (4.2.1)
criu                       MISSING  checkpoint, restore, migrate
    reason: none is recorded
    costs: no checkpoint, no restore, no migration
    cure: insula setup

containers run here; 1 of 2 features found"""


def _finding(feature: Feature, state: State, detail: str) -> Finding:
    return Finding(feature=feature, state=state, detail=detail)


def test_table() -> None:
    findings = (
        _finding(FEATURE, State.FOUND, "4.2.1"),
        _finding(FEATURE, State.MISSING, "none is recorded"),
    )
    assert render(findings) == GOLDEN


def test_a_fatal_finding_is_named_in_the_last_sentence() -> None:
    text = render((_finding(REQUIRED, State.MISSING, "unknown filesystem type"),))
    assert text.endswith("containers cannot run here: overlay missing")


def test_who_is_not_root_is_told_that_root_may_find_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    text = render((_finding(REQUIRED, State.MISSING, "Permission denied"),))
    assert " ".join(text.splitlines()).endswith("who may find them: sudo insula doctor")


def test_no_line_is_wider_than_a_terminal() -> None:
    text = render((_finding(REQUIRED, State.MISSING, "word " * 60),))
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize("arguments", [["--format", "yaml"], ["--format"], ["now"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "usage: insula doctor" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""`insula profile apply` warns of a profile that no start has been recorded for."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.main import main


@pytest.mark.parametrize(
    ("is_from_birth", "enforce", "warns"),
    [(False, "deny", True), (True, "deny", False), (False, "log", False)],
)
def test_a_profile_without_a_start_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_from_birth: bool, enforce: str, warns: bool
) -> None:
    with serve(tmp_path / "s") as double:
        profile = {"name": "p", "is_from_birth": is_from_birth, "incomplete_because": ""}
        double.answers["GET /v1/profiles/p"] = (200, {}, profile)
        applied = {"is_running": False, "is_root_writable": False, "is_old": False}
        double.answers["POST /v1/containers/c/profile/apply"] = (200, {}, applied)
        assert main(["-H", double.host, "profile", "apply", "--enforce", enforce, "p", "c"]) == 0
    assert ("not recorded from a start on" in capsys.readouterr().err) == warns


def test_what_is_missing_among_drifts_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift = {"part": "written", "thing": "/etc", "count": 2, "command": "sh", "is_refused": True}
    with serve(tmp_path / "s") as double:
        found = {"drifts": [drift], "not_remembered": 5, "lost_events": 12}
        double.answers["GET /v1/containers/c/drift"] = (200, {}, found)
        assert main(["-H", double.host, "profile", "drift", "c"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith("/etc by sh")
    assert [each.split()[0] for each in others] == ["5", "12"]


def test_a_recording_is_kept_under_a_name_that_a_profile_can_have(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/Web"] = (200, {}, {"name": "Web"})
        assert main(["-H", double.host, "profile", "stop", "Web"]) != 0
        (asked,) = [json.loads(each.body) for each in double.seen if each.method == "POST"]
    assert asked == {"name": "web"}

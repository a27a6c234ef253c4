# SPDX-License-Identifier: Apache-2.0
"""`insula events` says what it missed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.main import main

TOLD = (
    {"type": "lost", "events": 3},
    {"type": "change", "at": 1.0, "container": "a" * 64, "name": "web", "event": "started", "detail": ""},
)


@pytest.mark.parametrize("containers", [(), ("web",)])
def test_what_was_missed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], containers: tuple[str, ...]
) -> None:
    with serve(tmp_path / "s") as double:
        lines = "".join(json.dumps(each) + "\n" for each in TOLD)
        double.answers["GET /v1/events"] = (200, {}, lines.encode())
        assert main(["-H", double.host, "events", "-n", "1", *containers]) == 0
    shown = capsys.readouterr()
    assert shown.err == "insula: 3 events were lost\n"
    assert shown.out.split()[2:] == ["web", "started"]
    assert shown.out.endswith("started\n")

# SPDX-License-Identifier: Apache-2.0
"""`insula audit ls`: the table says what was asked, also where a terminal has 80 columns."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.main import main

LINE = {
    "at": 1_700_000_000.0, "who": "alice", "from": "unix", "method": "POST", "path": "/v1/containers/web/start",
    "tenant": "shop", "result": "ok", "ms": 12.5,
}  # fmt: skip


@pytest.mark.parametrize(("words", "has_tenant"), [((), False), (("--tenant", "*"), True)])
def test_whose_it_is_is_told_who_asks_for_all(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    words: tuple[str, ...],
    has_tenant: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/audit"] = (200, {}, json.dumps(LINE).encode() + b"\n")
        assert main(["-H", double.host, *words, "audit", "ls"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert ("TENANT" in heading, "shop" in line) == (has_tenant, has_tenant)
    assert "POST containers/web/sta" in line

# SPDX-License-Identifier: Apache-2.0
"""`insula top` on a host without the screen's library says what to do."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.main import main


@pytest.mark.parametrize("missing", ["textual", "textual.app", "rich"])
def test_without_its_library_the_screen_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for name in [each for each in sys.modules if each.startswith(("insula.cli.top", "textual", "rich"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/version"] = (200, {}, {"host": "alpha"})
        double.answers["GET /v1/stats"] = (200, {}, [])
        assert main(["-H", double.host, "top"]) == 1
    said = capsys.readouterr().err
    assert "insula: cannot show a live screen: " in said
    assert "hint: install the Python package textual" in said

# SPDX-License-Identifier: Apache-2.0
"""What is missing is named, with what can still be done; nobody sees a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo import check

ROOT = Path(__file__).parents[3]


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lines = check.find_missing(lambda name: None if name in ("redis-server", "nft") else f"/usr/bin/{name}")
    assert lines == ["program `nft`", "program `redis-server`", check.STILL["other"]]


def test_without_root_the_code_is_3_and_the_words_are_plain() -> None:
    program = (
        "import os, runpy, sys\n"
        "os.geteuid = lambda: 1000\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "runpy.run_module('demo', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "root (this is uid 1000)" in done.stderr
    assert "Traceback" not in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""`scripts/setup` on machines that lack something: exactly what, what still works, exit code 3, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/setup"

#: Runs the script with one of its looks at the machine answered otherwise.
ALTERED = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("setup_script", sys.argv[1])
spec = importlib.util.spec_from_loader("setup_script", loader)
script = importlib.util.module_from_spec(spec)
sys.dont_write_bytecode = True
loader.exec_module(script)
script.os.geteuid = lambda: 0
script.check_debian = lambda: None
{change}
sys.exit(script.main([]))
"""


def _run(change: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", ALTERED.format(change=change), str(SCRIPT))
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("script.os.geteuid = lambda: 1000", "root (this is uid 1000)"),
        ("script.sys.version_info = (3, 9, 2)", "Python 3.11 or newer (this one is 3.9.2)"),
        (
            "script.refused_namespaces = lambda: {'user': 'Operation not permitted'}",
            "namespaces that this kernel or its guard refuses: user (Operation not permitted)",
        ),
    ],
)
def test_what_is_missing_is_said_with_exit_code_3(change: str, what: str) -> None:
    done = _run(change)
    assert done.returncode == 3, done.stderr
    assert f"setup: missing on this machine: {what}" in done.stderr
    assert "still possible here: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_shown() -> None:
    done = subprocess.run(
        (sys.executable, str(SCRIPT), "--help"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--only-venv" in done.stdout


@pytest.mark.parametrize("code", [0, 1, 3])
def test_make_ends_with_the_code_of_the_recipe(tmp_path: Path, code: int) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(SCRIPT.parents[1] / "Makefile", tmp_path)
    shutil.copy(SCRIPT.parent / "make_exit.c", scripts)
    (scripts / "setup").write_text(f"#!/bin/sh\nexit {code}\n")
    (scripts / "setup").chmod(0o755)
    for _run_again in range(2):
        done = subprocess.run(
            ("make", "-C", str(tmp_path), "setup"),
            capture_output=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
        assert done.returncode == code, done.stderr

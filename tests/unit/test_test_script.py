# SPDX-License-Identifier: Apache-2.0
"""`scripts/test`: a test that fails once has a second try, wherever it stands, and is called unsteady; a wrong one fails.

`scripts/test-security`: a check that failed once has to hold five times.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT, KERNEL = "tests/unit/test_it.py", "tests/kernel/test_it.py"
SECURITY = "tests/security/test_it.py"
PLACES = (UNIT, KERNEL, SECURITY, "tests/system/test_it.py", "tests/test_layers.py", "tests/test_style.py")
PASSES = "def test_it():\n    pass\n"
FAILS = "def test_it():\n    assert False\n"
FAILS_ONCE = """
from pathlib import Path

def test_it():
    seen = Path(__file__).with_suffix(".seen")
    was_seen = seen.exists()
    seen.touch()
    assert was_seen
"""
FAILS_FIRST_AND_FIFTH = """
from pathlib import Path

def test_it():
    seen = Path(__file__).with_suffix(".seen")
    times = len(seen.read_text()) + 1 if seen.exists() else 1
    seen.write_text("x" * times)
    assert times not in (1, 5)
"""
#: What `tests/conftest.py` and `tests/security/conftest.py` note for the scripts.
NOTES = """
def pytest_sessionfinish(session):
    session.config.cache.set("insula/ended", int(session.exitstatus))
    session.config.cache.set("insula/security", {"checks": 2, "held": 1, "unsteady": 1})
"""


def _run(folder: Path, tests: dict[str, str], *, script: str = "test") -> subprocess.CompletedProcess[str]:
    """Run the script in a project with these tests: path → text."""
    project = dict.fromkeys(PLACES, PASSES) | tests | {"tests/conftest.py": NOTES}
    for path, text in project.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    for name in ("scripts", ".stamps", ".venv/bin"):
        (folder / name).mkdir(parents=True)
    for name in (script, "judged.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return subprocess.run(
        (folder / "scripts" / script,),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _unsteady(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("UNSTEADY")]


def test_what_fails_once_is_called_unsteady(tmp_path: Path) -> None:
    done = _run(tmp_path, {UNIT: FAILS_ONCE, KERNEL: FAILS_ONCE})
    assert done.returncode == 0, done.stdout
    assert _unsteady(done) == [f"UNSTEADY: {UNIT}::test_it", f"UNSTEADY: {KERNEL}::test_it"]


def test_what_fails_twice_fails_all(tmp_path: Path) -> None:
    done = _run(tmp_path, {UNIT: FAILS, KERNEL: FAILS_ONCE})
    assert done.returncode == 1, done.stdout
    assert _unsteady(done) == [f"UNSTEADY: {KERNEL}::test_it"]


def test_six_failures_are_no_accident(tmp_path: Path) -> None:
    done = _run(tmp_path, {f"tests/unit/test_{number}.py": FAILS_ONCE for number in range(6)})
    assert done.returncode == 1, done.stdout
    assert "once more" not in done.stdout


def test_check_that_failed_once_and_holds_five_times_is_called_unsteady(tmp_path: Path) -> None:
    done = _run(tmp_path, {SECURITY: FAILS_ONCE}, script="test-security")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("once more") == 5
    assert _unsteady(done) == [f"UNSTEADY: {SECURITY}::test_it"]
    assert done.stdout.splitlines()[-1] == 'SECURITY {"checks": 2, "held": 1, "unsteady": 1}'


def test_check_that_fails_again_later_fails_all(tmp_path: Path) -> None:
    done = _run(tmp_path, {SECURITY: FAILS_FIRST_AND_FIFTH}, script="test-security")
    assert done.returncode == 1, done.stdout
    assert not _unsteady(done)


def test_four_checks_that_failed_are_no_accident(tmp_path: Path) -> None:
    tests = {f"tests/security/test_{number}.py": FAILS_ONCE for number in range(4)}
    done = _run(tmp_path, tests, script="test-security")
    assert done.returncode == 1, done.stdout
    assert "once more" not in done.stdout

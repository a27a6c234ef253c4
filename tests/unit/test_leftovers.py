# SPDX-License-Identifier: Apache-2.0
"""The count of what tests leave behind sees what it should, and the run fails for a skip that nobody allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import leftovers

TESTS = Path(__file__).parents[1]


def test_a_new_descriptor_is_seen() -> None:
    before = leftovers.take_snapshot()
    read_end, write_end = os.pipe()
    try:
        left = leftovers.difference(before, leftovers.take_snapshot())
    finally:
        os.close(read_end)
        os.close(write_end)
    assert len([line for line in left if line.startswith("descriptor: ")]) == 2


def test_what_another_manager_makes_below_its_own_group_is_not_ours(tmp_path: Path) -> None:
    for each in ("user.slice/session-1", "user.slice/insula-x/one", "insula-y", "stray/inner"):
        (tmp_path / each).mkdir(parents=True)
    found = leftovers.cgroups(tmp_path, others={str(tmp_path / "user.slice")})
    assert {os.path.relpath(each, tmp_path) for each in found} == {
        ".", "user.slice", "user.slice/insula-x", "user.slice/insula-x/one", "insula-y", "stray", "stray/inner",
    }  # fmt: skip


def test_a_new_process_is_seen_until_it_ends() -> None:
    before = leftovers.take_snapshot()
    with subprocess.Popen(("cat",), stdin=subprocess.PIPE) as process:
        left = leftovers.difference(before, leftovers.take_snapshot())
        process.communicate()
    assert f"process: {process.pid} cat" in left
    assert f"process: {process.pid} cat" not in leftovers.difference(before, leftovers.take_snapshot())


def test_a_process_that_left_our_tree_is_seen_by_its_mark() -> None:
    before = leftovers.take_snapshot()
    read_end, write_end = os.pipe()
    done = subprocess.run(
        ("sh", "-c", "exec 3<&0; cat <&3 >/dev/null 2>&1 & echo $!"),
        stdin=read_end,
        capture_output=True,
        text=True,
        check=True,
    )
    left = leftovers.difference(before, leftovers.take_snapshot())
    os.close(read_end)
    os.close(write_end)  # ends `cat`
    assert any(line.startswith(f"process: {done.stdout.strip()} ") for line in left), left
    assert not leftovers.wait_until_gone(before)


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_skip_that_nobody_allowed_fails_the_run_in_ci(tmp_path: Path, ci: str, code: int) -> None:
    for name in ("conftest.py", "leftovers.py", "loops.py", "waiting.py", "allowed_skips.txt"):
        (tmp_path / name).write_text((TESTS / name).read_text())
    (tmp_path / "test_x.py").write_text(
        "import pytest\n\ndef test_it():\n    pytest.skip('no time namespace')\n"
    )
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CI": ci},
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stdout

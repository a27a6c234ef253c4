# SPDX-License-Identifier: Apache-2.0
"""A run folder is one state folder's as long as somebody serves or runs there."""

import fcntl
from pathlib import Path

import pytest

from insula.daemon.run_folder import OWNER, check_unserved, claim
from insula.model.errors import Conflict


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    found = (tmp_path / "run", tmp_path / "one", tmp_path / "two")
    for each in found:
        each.mkdir()
    claim(found[0], found[1], is_holding=False)
    return found


def test_another_state_folder_is_refused_while_an_insulad_serves(folders: tuple[Path, Path, Path]) -> None:
    run, one, two = folders
    with open(one / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match=f"cannot use run folder `{run}`: another insulad does"):
            check_unserved(run, two)
        check_unserved(run, one)
    check_unserved(run, two)


def test_another_state_folder_is_refused_while_containers_run(folders: tuple[Path, Path, Path]) -> None:
    run, one, two = folders
    with pytest.raises(Conflict, match=f"containers of state folder `{one}` run there"):
        claim(run, two, is_holding=True)
    claim(run, one, is_holding=True)
    claim(run, two, is_holding=False)
    assert (run / OWNER).samefile(two)
    assert [each.name for each in run.iterdir()] == [OWNER]


def test_a_state_folder_that_was_moved_keeps_its_run_folder(folders: tuple[Path, Path, Path]) -> None:
    run, one, _ = folders
    moved = one.rename(one.parent / "moved")
    check_unserved(run, moved)
    claim(run, moved, is_holding=True)
    assert (run / OWNER).samefile(moved)

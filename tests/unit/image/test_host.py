# SPDX-License-Identifier: Apache-2.0
"""The host's own tree changes while it is looked at: somebody installs a program."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.image import host


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder in which the file `gone` vanishes after its folder was listed."""
    real = os.scandir
    for folder in ("usr", "opt", "etc"):
        (tmp_path / folder).mkdir()
        for name in ("gone", "stays"):
            (tmp_path / folder / name).write_text(name)

    def scandir(path: str | Path) -> Iterator[os.DirEntry[str]]:
        with real(path) as entries:
            found = list(entries)
        for entry in found:
            if entry.name == "gone":
                os.unlink(entry.path)
        return iter(found)

    monkeypatch.setattr(host.os, "scandir", scandir)
    return tmp_path


def test_a_file_that_vanishes_during_the_survey_is_left_out(root: Path) -> None:
    first = host._survey(root)
    assert first.identity == host._survey(root).identity


def test_a_file_that_vanishes_during_the_copy_is_left_out(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "mask"
    (made / "etc").mkdir(parents=True)
    host._Mask(made, root)._copy("etc")
    assert os.listdir(made / "etc") == ["stays"]

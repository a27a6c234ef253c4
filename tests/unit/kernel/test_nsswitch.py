# SPDX-License-Identifier: Apache-2.0
"""Who lends ids on this host, as its configuration says."""

from pathlib import Path

import pytest

from insula.kernel.nsswitch import lenders_elsewhere


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("passwd: files sss\n", ()),
        ("subid: files\n", ()),
        ("subid: sss\n", ("sss",)),
        ("#subid: sss\n", ()),
        ("  subid:\tfiles [SUCCESS=return] sss # ours\n", ("sss",)),
    ],
)
def test_who_lends_ids_besides_the_files(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    file = tmp_path / "nsswitch.conf"
    file.write_text(text)
    assert lenders_elsewhere(file=file) == found


def test_a_host_without_the_file_has_the_files_alone(tmp_path: Path) -> None:
    assert lenders_elsewhere(file=tmp_path / "none") == ()

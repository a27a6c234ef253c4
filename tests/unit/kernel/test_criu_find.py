# SPDX-License-Identifier: Apache-2.0
"""The record of the CRIU that this host uses."""

import json
from pathlib import Path

import pytest

from insula.kernel.criu_find import (
    RECORD_NAME,
    CriuProgram,
    CriuRecord,
    find_criu,
    in_prefix,
    read_record,
    write_record,
)


def _make_prefix(folder: Path) -> Path:
    for name in ("usr/sbin/criu", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text("")
        path.chmod(0o755)
    return folder


def test_a_prefix_is_run_by_its_own_loader(tmp_path: Path) -> None:
    program = in_prefix(_make_prefix(tmp_path), "4.2.1-1")
    libraries = f"{tmp_path}/usr/lib/x86_64-linux-gnu"
    expected = (f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries, f"{tmp_path}/usr/sbin/criu")
    assert program == CriuProgram(argv=expected, version="4.2.1-1")


def test_a_prefix_without_a_loader_is_none(tmp_path: Path) -> None:
    _make_prefix(tmp_path)
    (tmp_path / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").unlink()
    assert in_prefix(tmp_path, "4.2.1-1") is None


def test_what_is_written_is_read_and_found(tmp_path: Path) -> None:
    program = in_prefix(_make_prefix(tmp_path), "4.2.1-1")
    assert program is not None
    record = CriuRecord(program=program, digest="00", kernel="6.18")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    assert find_criu(tmp_path) == program
    assert not list(tmp_path.glob("*.part"))


def test_a_criu_that_is_gone_is_not_found(tmp_path: Path) -> None:
    program = CriuProgram(argv=(str(tmp_path / "criu"),), version="4.2")
    write_record(CriuRecord(program=program, digest="00", kernel="6.18"), tmp_path)
    assert find_criu(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 99}', '{"format": 1}', json.dumps({"format": 1, "argv": 3})],
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    assert read_record(tmp_path) is None
    assert find_criu(tmp_path) is None


def test_no_record_is_none(tmp_path: Path) -> None:
    assert find_criu(tmp_path / "absent") is None

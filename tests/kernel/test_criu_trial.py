# SPDX-License-Identifier: Apache-2.0
"""The trial tells a CRIU that works from one that does not, and `insula setup` is quick the second time."""

import os
from pathlib import Path

import pytest

from insula.daemon.criu_trial import try_criu
from insula.daemon.setup import digest_of, set_up
from insula.kernel.criu_find import CriuProgram, CriuRecord, find_criu, read_record, write_record
from waiting import DEADLINE_S


def _found() -> CriuProgram:
    program = find_criu()
    assert program is not None, "run `make setup` first"
    return program


def test_the_recorded_criu_dumps_and_restores_a_tcp_connection() -> None:
    assert try_criu(_found()) == ""


@pytest.mark.parametrize(
    ("script", "reason", "seconds"),
    [
        ("echo 'Error (x.c:1): no such luck' >&2; exit 1", "Error (x.c:1): no such luck", DEADLINE_S),
        ("exit 0", "timed out", 2.0),  # claims to have dumped; the program still runs
    ],
)
def test_a_criu_that_does_not_work_is_refused_with_its_reason(
    tmp_path: Path, script: str, reason: str, seconds: float
) -> None:
    fake = tmp_path / "criu"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    assert reason in try_criu(CriuProgram(argv=(str(fake),), version="0"), step_seconds=seconds)


def test_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    program = _found()
    write_record(CriuRecord(program=program, digest=digest_of(program), kernel=os.uname().release), tmp_path)
    lines: list[str] = []
    assert set_up(lines.append, tmp_path) == program
    assert lines == [f"criu: {program.version} was tried on this kernel ({os.uname().release})"]


def test_a_criu_that_was_tried_on_another_kernel_is_tried_again(tmp_path: Path) -> None:
    program = _found()
    prefix = Path(program.argv[-1]).parents[2].parent
    record = read_record()
    assert record is not None
    write_record(CriuRecord(program=program, digest=record.digest, kernel="5.15.0-older"), tmp_path)
    lines: list[str] = []
    (tmp_path / program.version).symlink_to(prefix / program.version)
    set_up(lines.append, tmp_path)
    renewed = read_record(tmp_path)
    assert renewed is not None
    assert renewed.kernel == os.uname().release
    assert lines[-1].endswith("dumps and restores on this kernel")

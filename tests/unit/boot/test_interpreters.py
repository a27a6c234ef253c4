# SPDX-License-Identifier: Apache-2.0
"""Who runs a program: as the kernel reads it."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.boot.interpreters import chain, interpreter_of


def written(folder: Path, data: bytes) -> str:
    path = folder / "program"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"#!/bin/sh\n", "/bin/sh"),
        (b"#! \t/bin/sh -e x\n", "/bin/sh"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!relative\n", "relative"),
        (b"#!\n/bin/sh", ""),
        (b"# /bin/sh\n", ""),
        (b"\x7fELF", ""),
        (b"", ""),
    ],
)
def test_scripts(tmp_path: Path, head: bytes, wanted: str) -> None:
    assert interpreter_of(written(tmp_path, head)) == wanted


def test_the_loader_of_a_real_program_is_what_readelf_says() -> None:
    said = subprocess.run(
        ["readelf", "-l", "/usr/bin/true"], capture_output=True, text=True, check=True
    ).stdout
    wanted = said.split("program interpreter: ")[1].split("]")[0]
    assert interpreter_of("/usr/bin/true") == wanted
    assert interpreter_of(wanted) == ""


def test_a_32_bit_program(tmp_path: Path) -> None:
    head = (
        b"\x7fELF\x01\x01\x01".ljust(28, b"\0")
        + struct.pack("=I", 64)
        + bytes(10)
        + struct.pack("=HH", 32, 2)
    )
    headers = struct.pack("=8I", 1, *(0,) * 7) + struct.pack("=8I", 3, 128, 0, 0, 9, 0, 0, 0)
    assert interpreter_of(written(tmp_path, head.ljust(64, b"\0") + headers + b"/lib/ld1\0")) == "/lib/ld1"


def test_a_chain_ends(tmp_path: Path) -> None:
    path = written(tmp_path, f"#!{tmp_path}/program\n".encode())
    assert list(chain(path)) == [path] * 6


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert interpreter_of(str(tmp_path / "fifo")) == ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([b"", b"#!", b"\x7fELF\x01", b"\x7fELF\x02"]))
def test_any_bytes_are_read(tmp_path: Path, data: bytes, head: bytes) -> None:
    interpreter_of(written(tmp_path, head + data))

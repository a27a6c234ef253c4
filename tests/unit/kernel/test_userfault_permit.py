# SPDX-License-Identifier: Apache-2.0
"""The shared switch: on while anybody needs it, put back by the last, also after one was killed.  On files of its own."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.kernel import userfault_permit


class Switch:
    def __init__(self, folder: Path, value: str) -> None:
        self.setting = folder / "setting"
        self.lock = folder / "lock"
        self.setting.write_text(value)

    @property
    def value(self) -> str:
        return self.setting.read_text().strip()

    @contextmanager
    def permit(self) -> Iterator[None]:
        with userfault_permit.permit(setting=str(self.setting), lock=str(self.lock)):
            yield

    def put_back(self) -> None:
        userfault_permit.put_back(setting=str(self.setting), lock=str(self.lock))


@pytest.fixture
def switch(tmp_path: Path) -> Switch:
    return Switch(tmp_path, "0\n")


def _holder(switch: Switch) -> int:
    """Have a child hold it until it is killed.  Returns: its pid, once it does."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with switch.permit():
                os.write(write, b"x")
                signal.alarm(20)
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_on_inside_and_off_again(switch: Switch) -> None:
    with switch.permit():
        assert switch.value == "1"
    assert switch.value == "0"


def test_the_last_one_puts_it_back(switch: Switch) -> None:
    first = switch.permit()
    first.__enter__()
    with switch.permit():
        first.__exit__(None, None, None)
        assert switch.value == "1"
        switch.put_back()
        assert switch.value == "1"
    assert switch.value == "0"


def test_what_was_on_stays_on(tmp_path: Path) -> None:
    switch = Switch(tmp_path, "1\n")
    with switch.permit():
        assert switch.value == "1"
    assert switch.value == "1"


def test_killed_holder_is_cleaned_up_after(switch: Switch) -> None:
    pid = _holder(switch)
    switch.put_back()
    assert switch.value == "1", "it is still held"
    _kill(pid)
    switch.put_back()
    assert switch.value == "0"


def test_next_holder_after_a_killed_one_knows_what_it_was(switch: Switch) -> None:
    _kill(_holder(switch))
    assert switch.value == "1"
    with switch.permit():
        assert switch.value == "1"
    assert switch.value == "0"


def test_nothing_to_put_back(switch: Switch) -> None:
    switch.put_back()
    assert switch.value == "0"


def test_a_setting_that_cannot_be_written_costs_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(OSError, match="Input/output error"),
        userfault_permit.permit(setting="/proc/version", lock=str(tmp_path / "lock")),
    ):
        pass
    assert os.listdir("/proc/self/fd") == before

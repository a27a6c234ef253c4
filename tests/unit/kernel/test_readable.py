# SPDX-License-Identifier: Apache-2.0
"""What can be read is found, whatever its number."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from insula.kernel.readable import wait_readable


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose reading end has a number that select(2) does not know."""
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 1500)
    os.close(reading)
    yield high, writing
    os.close(high)
    os.close(writing)


def test_only_what_can_be_read_is_returned(pipe: tuple[int, int]) -> None:
    high, writing = pipe
    others = os.pipe()
    try:
        assert wait_readable(high, others[0], seconds=0) == frozenset()
        os.write(writing, b"x")
        assert wait_readable(high, others[0]) == {high}
        os.write(others[1], b"x")
        assert wait_readable(high, others[0], seconds=0) == {high, others[0]}
    finally:
        for each in others:
            os.close(each)


def test_an_end_is_to_be_read(pipe: tuple[int, int]) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert wait_readable(reading, pipe[0], seconds=0) == {reading}
    os.close(reading)

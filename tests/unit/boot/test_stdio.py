# SPDX-License-Identifier: Apache-2.0
"""What a program writes, when descriptors run out and when somebody never stops writing."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.boot.stdio import LAST_BYTES, RECORD, Log, Stdio
from insula.model import stream

HALF = 4096


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Have each open(2) fail with EMFILE."""
    lowest = os.dup(0)
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class NoLoop:
    """Nothing is ever ready by itself."""

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None: ...
    def unwatch(self, descriptor: int) -> None: ...
    def call_at(self, deadline: float, callback: Callable[[], None]) -> object: ...


def test_a_log_that_could_not_be_turned_over_is_turned_over_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), kept_bytes=2 * HALF)
    with no_descriptor_left():
        for _ in range(3):
            log.write(stream.STDOUT, bytes(HALF))
    for _ in range(20):
        log.write(stream.STDOUT, bytes(HALF // 4))
    log.close()
    sizes = [each.stat().st_size for each in (path, tmp_path / "log.1")]
    assert max(sizes) <= 2 * (HALF + RECORD.size), sizes


def test_of_a_pipe_that_is_never_empty_the_end_of_the_program_takes_what_it_can_hold(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), kept_bytes=8 * LAST_BYTES)
    stdio = Stdio(NoLoop(), log=log, signal=lambda _number: None)
    stdio.add_output(os.open("/dev/zero", os.O_RDONLY), stream.STDOUT)
    stdio.finish(b"")
    assert LAST_BYTES <= (tmp_path / "log").stat().st_size <= 2 * LAST_BYTES

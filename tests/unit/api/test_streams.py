# SPDX-License-Identifier: Apache-2.0
"""A log that is followed is closed, whenever its reader goes."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from insula.api.streams import opened
from insula.api.verbs import LogWish


class Log:
    """Opened when `may_open` is set."""

    def __init__(self) -> None:
        self.is_opening, self.may_open, self.is_closed = (threading.Event() for _ in range(3))

    def open_logs(self, _grant: object, _ref: str, *, wish: LogWish) -> "Log":
        del wish
        self.is_opening.set()
        assert self.may_open.wait(30)
        return self

    def close(self) -> None:
        self.is_closed.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def call_of(log: Log, threads: ThreadPoolExecutor) -> Any:
    return SimpleNamespace(threads=threads, api=SimpleNamespace(verbs=log), grant=None, ref="web")


def test_one_that_was_read_is_closed(threads: ThreadPoolExecutor) -> None:
    log = Log()
    log.may_open.set()

    async def read() -> None:
        async with opened(call_of(log, threads), LogWish()) as cursor:
            assert cursor is log
            assert not log.is_closed.is_set()

    asyncio.run(read())
    assert log.is_closed.wait(30)


def test_one_whose_reader_goes_while_it_is_opened_is_closed(threads: ThreadPoolExecutor) -> None:
    log = Log()

    async def read() -> None:
        async with opened(call_of(log, threads), LogWish()):
            raise AssertionError("it was not opened yet")

    async def go() -> None:
        reading = asyncio.create_task(read())
        await asyncio.to_thread(log.is_opening.wait, 30)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(go())
    log.may_open.set()
    assert log.is_closed.wait(30)

# SPDX-License-Identifier: Apache-2.0
"""A log that is followed is closed, whenever its reader goes."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from api_double import serving
from insula.api.bodies import MAX_TAIL
from insula.api.streams import opened
from insula.api.verbs import LogWish
from insula.model.record import LogLine


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


class Long:
    """A log of some batches, that counts how many are read at once."""

    def __init__(self, counted: "list[int]") -> None:
        self._left, self._counted = 20, counted

    def read(self) -> list[LogLine] | None:
        self._counted[0] += 1
        self._counted[1] = max(self._counted)
        threading.Event().wait(0.001)
        self._counted[0] -= 1
        self._left -= 1
        if self._left == 10:
            return []  # nothing of interest in this batch
        return [LogLine(time=0.0, stream="stdout", text="x")] if self._left else None

    def close(self) -> None:
        pass


def test_one_caller_reads_one_batch_at_a_time(tmp_path: Path) -> None:
    counted = [0, 0]
    verbs = SimpleNamespace(open_logs=lambda *_, wish: Long(counted))

    async def ask(session: aiohttp.ClientSession) -> int:
        async with session.get("/v1/containers/web/logs") as answer:
            return len((await answer.read()).splitlines())

    async def go() -> None:
        async with serving(tmp_path, verbs=verbs) as (_, path):
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession("http://insula", connector=connector) as session:
                assert await asyncio.gather(*(ask(session) for _ in range(5))) == [18] * 5

    asyncio.run(go())
    assert counted == [0, 1]


@pytest.mark.parametrize("tail", ["x", "-1", "1.5", "٣", str(MAX_TAIL + 1), str(10**20), "9" * 5000])
def test_a_tail_that_is_no_number_of_lines_is_refused(tmp_path: Path, tail: str) -> None:
    async def go() -> None:
        async with serving(tmp_path) as (_, path):
            connector = aiohttp.UnixConnector(str(path))
            async with (
                aiohttp.ClientSession("http://insula", connector=connector) as session,
                session.get("/v1/containers/web/logs", params={"tail": tail}) as answer,
            ):
                assert answer.status == 400
                error = (await answer.json())["error"]
            assert error["code"] == "bad_request"
            assert error["hint"] == f"a number up to {MAX_TAIL}, or all"

    asyncio.run(go())

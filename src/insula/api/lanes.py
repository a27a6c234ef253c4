# SPDX-License-Identifier: Apache-2.0
"""Threads for blocking work, a bounded number for each caller: who fills all of his own waits for himself only.

A lane is the caller's (a uid, a paired host), not the tenant's that he acts for.  There are at most as many as tenants
and paired hosts, and a lane has no thread before it has had work.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from insula.model.grant import Principal

Answer = TypeVar("Answer")


class Lanes:
    """One pool of threads for each caller."""

    def __init__(self, name: str, *, width: int) -> None:
        self._name = name
        self._width = width
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._guard = threading.Lock()

    def of(self, principal: Principal) -> ThreadPoolExecutor:
        """Return the caller's threads."""
        key = _key(principal)
        with self._guard:
            pool = self._pools.get(key)
            if pool is None:
                pool = ThreadPoolExecutor(self._width, thread_name_prefix=f"{self._name} {key}")
                self._pools[key] = pool
            return pool

    def close(self) -> None:
        """Take no more work.  What runs is finished by its threads."""
        with self._guard:
            for pool in self._pools.values():
                pool.shutdown(wait=False, cancel_futures=True)


READING_BURST_S = 1.0
"""So long a caller may be read for without a pause, then for this share of the time."""
READING_SHARE = 0.25


class Turn:
    """One caller's readings: a batch at a time, and not all the time.  For `async with`, in the loop's thread."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._left_s, self._at = READING_BURST_S, time.monotonic()

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        try:
            await asyncio.sleep(max(0.0, -self._settled_s()) / READING_SHARE)
        except asyncio.CancelledError:
            self._lock.release()
            raise
        self._settled_s()

    async def __aexit__(self, *_: object) -> None:
        self._left_s -= time.monotonic() - self._at
        self._at = time.monotonic()
        self._lock.release()

    def _settled_s(self) -> float:
        """Return what is left by now; less than nothing: what was taken too much."""
        now = time.monotonic()
        self._left_s = min(READING_BURST_S, self._left_s + (now - self._at) * READING_SHARE)
        self._at = now
        return self._left_s


class Turns:
    """The turns of each caller: long readings cost a processor, and others are served by the same."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    def of(self, principal: Principal) -> Turn:
        """Return the caller's."""
        return self._turns.setdefault(_key(principal), Turn())


async def to_its_end(reading: Coroutine[None, None, Answer]) -> Answer:
    """Wait for a thread also when cancelled: what it reads is open, and held in memory, until then."""
    task = asyncio.create_task(reading)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait({task})


def _key(principal: Principal) -> str:
    if principal.is_peer:
        return f"host {principal.name}"
    if principal.uid is not None:
        return f"uid {principal.uid}"
    return f"user {principal.name}" if principal.is_user else "nobody"

# SPDX-License-Identifier: Apache-2.0
"""Threads for blocking work, a bounded number for each caller: who fills all of his own waits for himself only.

A lane is the caller's (a uid, a paired host), not the tenant's that he acts for.  There are at most as many as tenants
and paired hosts, and a lane has no thread before it has had work.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from insula.model.grant import Principal


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


class OneByOne:
    """A lock for each caller, for what costs others least when one caller does one of it at a time.  The loop's thread only."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, principal: Principal) -> asyncio.Lock:
        """Return the caller's lock."""
        return self._locks.setdefault(_key(principal), asyncio.Lock())


def _key(principal: Principal) -> str:
    if principal.is_peer:
        return f"host {principal.name}"
    if principal.uid is not None:
        return f"uid {principal.uid}"
    return f"user {principal.name}" if principal.is_user else "nobody"

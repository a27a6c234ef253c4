# SPDX-License-Identifier: Apache-2.0
"""Requests one by one into the daemon: each user at its own pace, so many at once, and none at another's cost.

    connect   more than MAX_CONNECTIONS of one uid       429 without a look at the request (`Doorstep`)
    request   faster than the quota `requests`           waits up to a second, then 429 with Retry-After
    request   more open than the quota `streams`         507 with the figures
    a 429     is not sent at once                        each connection of a flood asks a few times a second at most

Administrators have no pace: somebody must be able to act.  Everything here belongs to the loop's thread.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from insula.model.errors import TooManyRequests
from insula.model.grant import Grant
from insula.model.quota import Allowance, Resource
from insula.tenant.pace import Bucket

PENALTY_S = 0.5
"""How long a refusal is held back: asking again at once would cost everybody more than an honest request."""
FORGOTTEN_S = 60.0
"""A user who has not asked for so long has a full bucket."""


class Gate:
    """What each request passes."""

    def __init__(self, allowance: Allowance, *, is_held: Callable[[int], bool]) -> None:
        """is_held: whether the spawner has the connection whose socket has this inode."""
        self._allowance = allowance
        self._is_held = is_held
        self._handed_over: dict[str, set[int]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._open: Counter[str] = Counter()
        self._swept_at = 0.0

    @asynccontextmanager
    async def passed(self, grant: Grant) -> AsyncIterator[None]:
        """Let a request in when it is its turn, and count it as long as the block runs.

        Raises: TooManyRequests, QuotaExceeded.
        """
        if not grant.principal.is_admin:
            await self._wait(grant)
            limit = self._allowance.limit(grant.tenant, Resource.STREAMS)
            if limit is not None:
                self._allowance.check(grant.tenant, Resource.STREAMS, used=self.open_of(grant.tenant))
        self._open[grant.tenant] += 1
        try:
            yield
        finally:
            self._open[grant.tenant] -= 1
            if not self._open[grant.tenant]:
                del self._open[grant.tenant]

    def open_of(self, tenant: str) -> int:
        """Count a tenant's requests under way, and its streams in the spawner's hands."""
        held = {inode for inode in self._handed_over.get(tenant, ()) if self._is_held(inode)}
        if held:
            self._handed_over[tenant] = held
        else:
            self._handed_over.pop(tenant, None)
        return self._open[tenant] + len(held)

    def hand_over(self, tenant: str, inode: int) -> None:
        """Go on counting a connection that is in the spawner's hands (attach, exec)."""
        self._handed_over.setdefault(tenant, set()).add(inode)

    async def _wait(self, grant: Grant) -> None:
        rate = self._allowance.limit(grant.tenant, Resource.REQUESTS)
        if rate is None:
            return
        now = time.monotonic()
        self._sweep(now)
        bucket = self._buckets.setdefault(grant.principal.name, Bucket.full(rate, now=now))
        try:
            wait_s = bucket.take(rate, now=now)
        except TooManyRequests:
            await asyncio.sleep(PENALTY_S)
            raise
        if wait_s:
            await asyncio.sleep(wait_s)

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < FORGOTTEN_S:
            return
        self._swept_at = now
        for name, bucket in list(self._buckets.items()):
            if now - bucket.filled_at > FORGOTTEN_S:
                del self._buckets[name]

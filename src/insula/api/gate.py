# SPDX-License-Identifier: Apache-2.0
"""Requests one by one into the daemon: each user at its own pace, so many at once, and none at another's cost.

    connect   more than `doorstep.MAX_CONNECTIONS` of one uid   429 without a look at the request
    request   faster than the quota `requests`                  waits up to a second, then 429 with Retry-After
    request   more open than the quota `streams`                507 with the figures
    a 429     is not sent at once                               each connection of a flood asks about once a second

The pace is kept by what the connection is known by, before anything is looked up: finding out who that is costs more
than all that a refusal needs.  The tenant's rate is learned from the first request.  Administrators have no pace:
somebody must be able to act; paired hosts have none, since what they carry is others'.  Everything here belongs to the
loop's thread.
"""

import asyncio
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from aiohttp import web

from insula.model.errors import TooManyRequests
from insula.model.grant import Grant
from insula.model.quota import Allowance, Resource
from insula.tenant.pace import Bucket

PENALTY_S = (0.5, 1.5)
"""How long a refusal is held back, by chance between these: asking again at once would cost everybody more than an honest
request, and all asking again at the same moment would, too."""
FORGOTTEN_S = 60.0
"""Of a user who has not asked for so long nothing is kept: its bucket is full."""
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


def penalty_s() -> float:
    """Choose how long a refusal is held back."""
    return random.uniform(*PENALTY_S)


def uid_of(connection: socket.socket) -> int:
    """Return the uid that connected.  Source: unix(7), SO_PEERCRED."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _source_of(request: web.Request) -> str:
    connection = request.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        return f"uid {uid_of(connection)}"
    return f"at {request.remote}"


class _Pace:
    """The pace of one source that has one."""

    __slots__ = ("bucket", "rate")

    def __init__(self) -> None:
        self.rate: int | None = None
        self.bucket: Bucket | None = None

    def take(self, now: float) -> float:
        """Take a place.  Returns: seconds to wait for it.  Raises: TooManyRequests."""
        if self.rate is None:
            return 0.0
        if self.bucket is None:
            self.bucket = Bucket.full(self.rate, now=now)
        return self.bucket.take(self.rate, now=now)

    def is_old(self, now: float) -> bool:
        return self.bucket is None or now - self.bucket.filled_at > FORGOTTEN_S


class Gate:
    """What each request passes."""

    def __init__(self, allowance: Allowance, *, is_held: Callable[[int], bool]) -> None:
        """is_held: whether the spawner has the connection whose socket has this inode."""
        self._allowance = allowance
        self._is_held = is_held
        self._handed_over: dict[str, set[int]] = {}
        self._sources: WeakKeyDictionary[asyncio.Transport, str] = WeakKeyDictionary()
        self._paces: dict[str, _Pace] = {}
        self._open: Counter[str] = Counter()
        self._swept_at = 0.0

    async def wait_turn(self, request: web.Request) -> None:
        """Have a request wait until its source may ask again.  Raises: TooManyRequests."""
        pace = self._paces.get(self._source(request))
        if pace is None:
            return
        try:
            wait_s = pace.take(time.monotonic())
        except TooManyRequests:
            await asyncio.sleep(penalty_s())
            raise
        if wait_s:
            await asyncio.sleep(wait_s)

    @asynccontextmanager
    async def passed(self, request: web.Request, grant: Grant) -> AsyncIterator[None]:
        """Count a request of somebody who is known now as long as the block runs.  Raises: QuotaExceeded."""
        self._learn_rate(request, grant)
        if self._limit(grant, Resource.STREAMS) is not None:
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

    def _source(self, request: web.Request) -> str:
        """Return what a request's connection is known by before anybody is asked: a uid, or an address."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        source = self._sources.get(transport)
        if source is None:
            source = self._sources[transport] = _source_of(request)
        return source

    def _learn_rate(self, request: web.Request, grant: Grant) -> None:
        rate = self._limit(grant, Resource.REQUESTS)
        source = self._source(request)
        if rate is None:
            self._paces.pop(source, None)
            return
        self._sweep(time.monotonic())
        self._paces.setdefault(source, _Pace()).rate = rate

    def _limit(self, grant: Grant, resource: Resource) -> int | None:
        """Return a limit of who asks; administrators and paired hosts, who ask for others, have none."""
        is_free = grant.principal.is_admin or grant.principal.is_peer
        return None if is_free else self._allowance.limit(grant.tenant, resource)

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < FORGOTTEN_S:
            return
        self._swept_at = now
        self._paces = {source: pace for source, pace in self._paces.items() if not pace.is_old(now)}

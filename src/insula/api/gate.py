# SPDX-License-Identifier: Apache-2.0
"""Requests one by one into the daemon: each tenant at its pace, its users in turns, so many at once, none at others' cost.

    connect   faster than any pace, or more than `doorstep.MAX_CONNECTIONS` of one uid   429 without a look at the request
    connect   over TLS, more than `guests.py` has places for                              429, and the connection is cut soon
    request   faster than the quota `requests`      waits up to a second, one user's not behind another's, then 429
    request   more open than the quota `streams`    507 with the figures
    a 429     is not sent at once                   each connection of a flood asks about once a second

The pace is kept by what a request is known by, before anything is looked up: finding out who that is costs more than all
that a refusal needs.  Whose that is, and the tenant's rate, are learned from the first request.  Who works for another
tenant (`?tenant=`) is counted among its own, and takes nothing of the other's.  Administrators have no pace: somebody must be able to act; paired hosts have none, since what they carry is others'.  Everything here
belongs to the loop's thread.
"""

import asyncio
import hashlib
import random
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from aiohttp import web

from insula.api.guests import Guests
from insula.kernel import unix_peer
from insula.model.errors import TooManyRequests
from insula.model.grant import Grant, Principal
from insula.model.quota import Allowance, Resource
from insula.tenant.pace import Rate, Turns

PENALTY_S = (0.5, 1.5)
"""How long a refusal is held back, by chance between these: asking again at once would cost everybody more than an honest
request, and all asking again at the same moment would, too."""
LOOK_S = 0.5
"""How often it is looked whether a tenant that has as many streams as it may has ended some."""
MANY_STREAMS = 128
"""Of one tenant: with each so many more it is looked which of them have ended."""
FORGOTTEN_S = 60.0
"""Of a user who has not asked for so long nothing is kept."""


def penalty_s() -> float:
    """Choose how long a refusal is held back."""
    return random.uniform(*PENALTY_S)


def source_of_uid(uid: int) -> str:
    """Return what the connections of a uid are known by."""
    return f"uid {uid}"


@dataclass(frozen=True, slots=True)
class _Known:
    """Who is behind a source."""

    tenant: str
    """Whose pace it keeps: its own, whomever it asks for."""
    user: str
    """Whose turn it takes: one, however many connections and tokens there are."""


def _token_source(request: web.Request) -> str:
    """Return what the requests with a token are known by: the whole of it, since its id could be guessed; empty: none."""
    shown = request.headers.get("Authorization", "")
    return f"token {hashlib.sha256(shown.encode(errors='surrogateescape')).hexdigest()}" if shown else ""


def _source_of(request: web.Request) -> str:
    connection = request.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        return source_of_uid(unix_peer.credentials(connection).uid)
    tls = request.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject) else None
    return f"certificate {hashlib.sha256(certificate).hexdigest()}" if certificate else f"at {request.remote}"


class _Pace:
    """The pace of one tenant: its requests go on when their turn comes."""

    def __init__(self, rate: int) -> None:
        self.turns = Turns[asyncio.Future[None]].begin(rate, now=time.monotonic())
        self.asked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait_turn(self, source: str) -> None:
        """Raises: TooManyRequests."""
        loop = asyncio.get_running_loop()
        self.asked_at = time.monotonic()
        turn: asyncio.Future[None] = loop.create_future()
        if self.turns.enter(source, turn, now=self.asked_at):
            return
        self._wake_in_time(loop)
        try:
            await turn
        finally:
            self.turns.leave(source, turn)

    def _wake_in_time(self, loop: asyncio.AbstractEventLoop) -> None:
        wait_s = self.turns.next_s()
        if self._timer is None and wait_s is not None:
            self._timer = loop.call_later(wait_s, self._deal, loop)

    def _deal(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for turn in self.turns.deal(now=time.monotonic()):
            if not turn.done():
                turn.set_result(None)
        self._wake_in_time(loop)


class Gate:
    """What each request passes."""

    def __init__(self, allowance: Allowance, *, held: Callable[[], frozenset[int]]) -> None:
        """held: finds the sockets that the spawner has, by their inodes; with many of them a look takes milliseconds."""
        self._allowance = allowance
        self._held = held
        self._handed_over: dict[str, set[int]] = {}
        """By tenant; those that have ended stay until the next look."""
        self._full_until: dict[str, float] = {}
        """By tenant: until when nobody looks whether some of its streams have ended."""
        self._sources: WeakKeyDictionary[asyncio.Transport, str] = WeakKeyDictionary()
        self._known: dict[str, _Known] = {}
        """By source."""
        self._paces: dict[str, _Pace] = {}
        self._open: Counter[str] = Counter()
        self._rates: defaultdict[str, Rate] = defaultdict(Rate)
        self.guests = Guests()
        self._swept_at = 0.0

    async def wait_turn(self, request: web.Request) -> None:
        """Have a request wait until its source may ask again.  Raises: TooManyRequests."""
        known = self._known_of(request)
        pace = self._pace_of(known)
        if known is None or pace is None:
            return
        try:
            await pace.wait_turn(known.user)
        except TooManyRequests:
            await asyncio.sleep(penalty_s())
            raise

    def rate_of(self, source: str) -> int | None:
        """Return how many requests a second the tenant of a source has; None: any number, or nobody knows yet."""
        pace = self._pace_of(self._known.get(source))
        return pace.turns.rate if pace is not None else None

    def _pace_of(self, known: _Known | None) -> _Pace | None:
        return self._paces.get(known.tenant) if known is not None else None

    @asynccontextmanager
    async def passed(self, request: web.Request, grant: Grant) -> AsyncIterator[None]:
        """Count a request of somebody who is known now as long as the block runs.  Raises: QuotaExceeded, TooManyRequests."""
        self._learn_rate(request, grant.principal)
        self.guests.let_in(request.transport, grant.principal)
        own = grant.principal.tenant
        limit = self._limit(grant.principal, Resource.STREAMS)
        if limit is not None and self._most_open_of(own) >= limit:
            self._look_again(own, limit=limit)
            self._allowance.check(own, Resource.STREAMS, used=self._most_open_of(own))
        self._open[own] += 1
        self._rates[own].note(now=time.monotonic())
        try:
            yield
        finally:
            self._open[own] -= 1
            if not self._open[own]:
                del self._open[own]

    def open_of(self, tenant: str) -> int:
        """Count a tenant's requests under way, and its streams in the spawner's hands.  From any thread."""
        handed_over = self._handed_over.get(tenant)
        return self._open[tenant] + (len(self._held() & handed_over) if handed_over else 0)

    def _most_open_of(self, tenant: str) -> int:
        return self._open[tenant] + len(self._handed_over.get(tenant, ()))

    def _look_again(self, tenant: str, *, limit: int) -> None:
        """Forget streams that have ended, of a tenant that seems to have enough: once in a while, as it may ask on and on."""
        now = time.monotonic()
        if now < self._full_until.get(tenant, 0.0):
            return
        self._forget_ended(tenant)
        if self._most_open_of(tenant) >= limit:
            self._full_until[tenant] = now + LOOK_S
        else:
            self._full_until.pop(tenant, None)

    def _forget_ended(self, tenant: str) -> None:
        if left := self._held() & self._handed_over.get(tenant, frozenset()):
            self._handed_over[tenant] = set(left)
        else:
            self._handed_over.pop(tenant, None)

    def requests_per_second(self, tenant: str) -> int:
        """Count a tenant's requests of the last second that were let in."""
        rate = self._rates.get(tenant)
        return rate.per_second(now=time.monotonic()) if rate is not None else 0

    def hand_over(self, tenant: str, inode: int) -> None:
        """Go on counting a connection that is in the spawner's hands (attach, exec)."""
        handed_over = self._handed_over.setdefault(tenant, set())
        handed_over.add(inode)
        if len(handed_over) % MANY_STREAMS == 0:
            self._forget_ended(tenant)

    def _known_of(self, request: web.Request) -> _Known | None:
        """Return who is behind a request; a token that nobody has been served with stands for nobody."""
        source = self._source(request)
        return self._known.get(_token_source(request) or source, self._known.get(source))

    def _source(self, request: web.Request) -> str:
        """Return what a request's connection is known by before anybody is asked: a uid, a certificate, or an address."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        source = self._sources.get(transport)
        if source is None:
            source = self._sources[transport] = _source_of(request)
        return source

    def _learn_rate(self, request: web.Request, principal: Principal) -> None:
        rate = self._limit(principal, Resource.REQUESTS)
        source = _token_source(request) or self._source(request)
        if rate is None:
            self._known.pop(source, None)
            return
        self._sweep(time.monotonic())
        self._known[source] = _Known(principal.tenant, principal.name)
        if principal.tenant not in self._paces:
            self._paces[principal.tenant] = _Pace(rate)
        self._paces[principal.tenant].turns.rate = rate

    def _limit(self, principal: Principal, resource: Resource) -> int | None:
        """Return a limit of who asks; administrators and paired hosts, who ask for others, have none."""
        is_free = principal.is_admin or principal.is_peer
        return None if is_free else self._allowance.limit(principal.tenant, resource)

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < FORGOTTEN_S:
            return
        self._swept_at = now
        self._paces = {
            tenant: pace
            for tenant, pace in self._paces.items()
            if pace.turns.waiting or now - pace.asked_at < FORGOTTEN_S
        }
        self._known = {source: known for source, known in self._known.items() if known.tenant in self._paces}

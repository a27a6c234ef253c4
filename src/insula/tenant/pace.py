# SPDX-License-Identifier: Apache-2.0
"""How fast one may ask: a bucket of requests that fills at a steady rate.  Pure: the caller tells the time.

A request that comes too early waits for its place, so that a client that is a little too fast is slowed and not
refused; one that would wait longer than PATIENCE_S is refused, and told when to come again.  `Bucket` is for one who asks;
`Turns` for several with one rate: each waits in a queue of its own, and the queues have turns.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from insula.model.errors import TooManyRequests

Ticket = TypeVar("Ticket")

PATIENCE_S = 1.0
BURST_S = 2.0
"""So many seconds' worth of requests may come at once."""


@dataclass(slots=True)
class Bucket:
    """One user's requests.  tokens: how many may come now; below 0: how many wait."""

    tokens: float
    filled_at: float
    burst_s: float = BURST_S

    @classmethod
    def full(cls, rate: int, *, now: float, burst_s: float = BURST_S) -> "Bucket":
        """Return a bucket of a user who has not asked for long.  burst_s: so many seconds' worth may come at once."""
        return cls(rate * burst_s, now, burst_s)

    def take(self, rate: int, *, now: float) -> float:
        """Take a place for one request.  rate: per second.  Returns: seconds to wait for it.

        Raises: TooManyRequests.
        """
        self.fill(rate, now=now)
        wait_s = max(0.0, (1 - self.tokens) / rate)
        if wait_s > PATIENCE_S:
            raise _refusal(rate, after_s=wait_s - PATIENCE_S)
        self.tokens -= 1
        return wait_s

    def try_take(self, rate: int, *, now: float, places: float = 1) -> bool:
        """Take places if they are there now.  Returns: whether they were."""
        self.fill(rate, now=now)
        if self.tokens < places:
            return False
        self.tokens -= places
        return True

    def fill(self, rate: int, *, now: float) -> None:
        """Add what has come in since the last time."""
        self.tokens = min(rate * self.burst_s, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now


@dataclass(slots=True)
class Rate:
    """How many came during the last second: those of this second, and as much of the one before as belongs to it."""

    second: int = 0
    count: int = 0
    before: int = 0

    def note(self, *, now: float) -> None:
        """Count one."""
        self._turn(int(now))
        self.count += 1

    def per_second(self, *, now: float) -> int:
        """Return how many there were."""
        self._turn(int(now))
        return round(self.count + self.before * (1 - now % 1))

    def _turn(self, second: int) -> None:
        if second != self.second:
            self.before = self.count if second == self.second + 1 else 0
            self.second, self.count = second, 0


@dataclass(slots=True)
class Turns(Generic[Ticket]):
    """The requests of several users who share a rate.  A ticket is whatever the caller knows a waiting request by."""

    rate: int
    """Per second."""
    bucket: Bucket
    waiting: dict[str, deque[Ticket]] = field(default_factory=dict)
    """User → its requests, in the order of the next turns."""

    @classmethod
    def begin(cls, rate: int, *, now: float) -> "Turns[Ticket]":
        return cls(rate, Bucket.full(rate, now=now))

    def enter(self, user: str, ticket: Ticket, *, now: float) -> bool:
        """Let a request in, or have it wait.  Returns: whether it is in.  Raises: TooManyRequests."""
        if not self.waiting and self.bucket.try_take(self.rate, now=now):
            return True
        own = len(self.waiting.get(user, ()))
        wait_s = (own + 1) * len({*self.waiting, user}) / self.rate
        if own and wait_s > PATIENCE_S:  # one may always wait: others' number is not this user's fault
            raise _refusal(self.rate, after_s=wait_s - PATIENCE_S)
        self.waiting.setdefault(user, deque()).append(ticket)
        return False

    def leave(self, user: str, ticket: Ticket) -> None:
        """Forget a request that waits for nothing any more."""
        queue = self.waiting.get(user, deque())
        if ticket in queue:
            queue.remove(ticket)
        if not queue:
            self.waiting.pop(user, None)

    def deal(self, *, now: float) -> list[Ticket]:
        """Return whose turn it is now: one of each user, then the next of each."""
        self.bucket.fill(self.rate, now=now)
        dealt = []
        while self.waiting and self.bucket.tokens >= 1:
            self.bucket.tokens -= 1
            user, queue = next(iter(self.waiting.items()))
            del self.waiting[user]
            dealt.append(queue.popleft())
            if queue:
                self.waiting[user] = queue
        return dealt

    def next_s(self) -> float | None:
        """Return the seconds until the next turn; None: nobody waits."""
        return max(0.0, (1 - self.bucket.tokens) / self.rate) if self.waiting else None


def _refusal(rate: int, *, after_s: float) -> TooManyRequests:
    return TooManyRequests(
        f"cannot serve so many requests: {rate} a second are yours",
        hint="ask less often",
        after_s=math.ceil(after_s),
    )

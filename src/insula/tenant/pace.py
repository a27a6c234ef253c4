# SPDX-License-Identifier: Apache-2.0
"""How fast a user may ask: a bucket of requests that fills at a steady rate.  Pure: the caller tells the time.

A request that comes too early waits for its place, so that a client that is a little too fast is slowed and not
refused; one that would wait longer than PATIENCE_S is refused, and told when to come again.
"""

import math
from dataclasses import dataclass

from insula.model.errors import TooManyRequests

PATIENCE_S = 1.0
BURST_S = 2.0
"""So many seconds' worth of requests may come at once."""


@dataclass(slots=True)
class Bucket:
    """One user's requests.  tokens: how many may come now; below 0: how many wait."""

    tokens: float
    filled_at: float

    @classmethod
    def full(cls, rate: int, *, now: float) -> "Bucket":
        """Return a bucket of a user who has not asked for long."""
        return cls(rate * BURST_S, now)

    def take(self, rate: int, *, now: float) -> float:
        """Take a place for one request.  rate: per second.  Returns: seconds to wait for it.

        Raises: TooManyRequests.
        """
        self.tokens = min(rate * BURST_S, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        wait_s = max(0.0, (1 - self.tokens) / rate)
        if wait_s > PATIENCE_S:
            raise TooManyRequests(
                f"cannot serve so many requests: {rate} a second are yours",
                hint="ask less often",
                after_s=math.ceil(wait_s - PATIENCE_S),
            )
        self.tokens -= 1
        return wait_s

# SPDX-License-Identifier: Apache-2.0
"""A queue before each place where something is exported to: bounded, never waited for, its losses counted.

    offer ── at most MAX_WAITING, the oldest go first ──► a thread: batches ──► a carrier: OTLP, a file, syslog

A carrier that cannot be reached is tried again, less and less often; meanwhile the queue fills.  Out of scope: what the
items are, and how they travel.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from insula.kernel.threads import begin
from insula.model.export import SinkCounts

LOG = logging.getLogger(__name__)

Item = TypeVar("Item")
Taken = TypeVar("Taken", contravariant=True)

MAX_WAITING = 20_000
BATCH = 500
MAX_PER_S = 20_000
LINGER_S = 0.5
"""How long a batch is gathered."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""After a failed try, another, and so on; the last for ever."""
CLOSE_S = 2.0
"""How long the end of insulad waits for what is left."""


class Unavailable(Exception):
    """It cannot be carried now; later, it may."""

    def __init__(self, reason: str, *, carried: int = 0, refused: int = 0, after_s: float = 0.0) -> None:
        """carried: how many of the batch went all the same.  refused: how many of these were not wanted, and never will be.

        after_s: when it may be tried again, if that was said.
        """
        super().__init__(reason)
        self.carried = carried
        self.refused = refused
        self.after_s = after_s


class Carrier(Protocol[Taken]):
    """How items get where they are meant to be.  Called from one thread."""

    def carry(self, items: Sequence[Taken]) -> int:
        """Carry a batch.  Returns: how many of it were refused for good.  Raises: Unavailable."""

    def close(self) -> None: ...


class Sink(Generic[Item]):
    """One place that things are exported to."""

    def __init__(
        self,
        name: str,
        carrier: Carrier[Item],
        *,
        max_waiting: int = MAX_WAITING,
        max_per_s: float = MAX_PER_S,
        linger_s: float = LINGER_S,
        after: Sequence["Sink[Item]"] = (),
    ) -> None:
        """after: sinks that are being closed, to the same place: nothing is carried before they have ended."""
        self.name = name
        self._carrier = carrier
        self._linger_s = linger_s
        self._after = after
        self._max_per_s = max_per_s
        self._waiting: deque[Item] = deque()
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._is_closing = False
        self._close_by = 0.0
        """Monotonic seconds; it counts while this is closing."""
        self._has_problem = False
        self._sent = self._dropped = self._refused = self._failures = self._tried = 0
        self._thread = threading.Thread(target=self._run, name=f"export {name}", daemon=True)
        begin(self._thread)

    def offer(self, item: Item) -> None:
        """Have an item carried some time, if there is room.  From any thread; never waits."""
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(item)
            if len(self._waiting) in (1, BATCH):
                self._changed.notify()

    @property
    def counts(self) -> SinkCounts:
        with self._changed:
            return SinkCounts(
                sink=self.name,
                sent=self._sent,
                dropped=self._dropped,
                refused=self._refused,
                failures=self._failures,
                waiting=len(self._waiting) + self._tried,
            )

    def close(self, *, within_s: float = CLOSE_S) -> None:
        """Carry what is left, if that goes at once, and end."""
        self.begin_close(within_s=within_s)
        self._thread.join(within_s)

    def begin_close(self, *, within_s: float = CLOSE_S) -> None:
        """Carry what is left, if that goes at once, and end, without a wait for it; again: nothing."""
        with self._changed:
            if not self._is_closing:
                self._is_closing, self._close_by = True, time.monotonic() + within_s
            self._changed.notify()

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_end(self, *, within_s: float = 2 * CLOSE_S) -> None:
        """Wait until somebody else has closed it, no longer than that."""
        self._thread.join(within_s)

    def _run(self) -> None:
        for each in self._after:
            each.wait_end()
        self._after = ()
        while batch := self._next_batch():
            began = time.monotonic()
            self._carry(batch)
            # More at once would be the processor time of all else that insulad does.
            self._waits_to_end(len(batch) / self._max_per_s - (time.monotonic() - began))
        self._carrier.close()

    def _next_batch(self) -> list[Item]:
        """Wait for something, and a little for more; empty: that was all."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._is_closing)
            if self._linger_s:
                self._changed.wait_for(
                    lambda: len(self._waiting) >= BATCH or self._is_closing, timeout=self._linger_s
                )
            if self._is_closing and time.monotonic() > self._close_by:
                self._give_up()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._tried = len(batch)
            return batch

    def _give_up(self) -> None:
        if self._waiting:
            fields = {"sink": self.name, "items": len(self._waiting)}
            LOG.warning("not all was exported", extra={"fields": fields})
        self._dropped += len(self._waiting)
        self._waiting.clear()

    def _carry(self, batch: list[Item]) -> None:
        tries = 0
        while batch:
            try:
                refused = min(self._carrier.carry(batch), len(batch))
            except Unavailable as error:
                batch = batch[error.carried :]
                self._note(error.carried - error.refused, refused=error.refused, left=len(batch), failures=1)
                self._judge(str(error))
                if self._waits_to_end(error.after_s or PAUSES_S[min(tries, len(PAUSES_S) - 1)]):
                    self._note(0, refused=0, left=0, dropped=len(batch))
                    return
                tries += 1
            except ValueError as error:  # it cannot be put into their words: nor could it later
                self._note(0, refused=len(batch), left=0)
                self._judge(str(error))
                return
            else:
                self._note(len(batch) - refused, refused=refused, left=0)
                self._judge("some of it is refused" if refused else "")
                return

    def _judge(self, problem: str) -> None:
        """Log that a problem has come, or that all is well again; not each time."""
        if bool(problem) is self._has_problem:
            return
        self._has_problem = bool(problem)
        if problem:
            LOG.warning("cannot export", extra={"fields": {"sink": self.name, "reason": problem}})
        else:
            LOG.info("exports go on", extra={"fields": {"sink": self.name}})

    def _note(self, sent: int, *, refused: int, left: int, failures: int = 0, dropped: int = 0) -> None:
        with self._changed:
            self._sent += sent
            self._refused += refused
            self._failures += failures
            self._dropped += dropped
            self._tried = left

    def _waits_to_end(self, seconds: float) -> bool:
        """Wait.  Returns: whether this ends."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closing, timeout=max(0.0, seconds))

# SPDX-License-Identifier: Apache-2.0
"""The client of many small servers: a kept connection to each, a question each 100 ms, every answer checked.

    python small_client.py PREFIX FIRST COUNT PORT      servers at PREFIX.FIRST, PREFIX.(FIRST + 1), …

A server answers each byte with its count in a line.  Talks by lines as `demo/load.py` does; `gap` is answered with the
longest wait of any server and the median of each server's longest since then.  Standard library only.
"""

import random
import select
import selectors
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.load import RECONNECT_S, SILENCE_S, Counter, Orders, Outcome, say

PERIOD_S = 0.1


@dataclass(kw_only=True)
class Asked:
    """One server: its connection, since when an answer is waited for, when it is asked again."""

    address: tuple[str, int]
    counter: Counter
    connection: socket.socket
    next_at: float
    sent_at: float | None = None
    rest: bytes = b""

    def ask(self, now: float) -> None:
        """Send a question."""
        self.sent_at = now
        self.next_at = now + PERIOD_S
        self.connection.send(b"?")

    def hear(self, now: float) -> None:
        """Take what came."""
        data = self.connection.recv(4096)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.rest += data
        while b"\n" in self.rest:
            line, _, self.rest = self.rest.partition(b"\n")
            self.counter.take(int(line), waited_s=now - (self.sent_at or now))
            self.sent_at = None

    def is_due(self, now: float) -> bool:
        return self.sent_at is None and now >= self.next_at

    def is_silent(self, now: float) -> bool:
        return self.sent_at is not None and now - self.sent_at > SILENCE_S


def connected(address: tuple[str, int]) -> socket.socket:
    """Connect, trying again for a while."""
    deadline = time.monotonic() + RECONNECT_S
    while True:
        try:
            connection = socket.create_connection(address, timeout=SILENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], 0.02)


class Many:
    """All servers and their connections."""

    def __init__(self, addresses: list[tuple[str, int]]) -> None:
        self._selector = selectors.DefaultSelector()
        spread = random.Random(len(addresses))
        begin = time.perf_counter()
        self.all = [
            Asked(
                address=each,
                counter=Counter(),
                connection=connected(each),
                next_at=begin + spread.random() * PERIOD_S,
            )
            for each in addresses
        ]
        for each in self.all:
            self._selector.register(each.connection, selectors.EVENT_READ, each)

    def turn(self) -> None:
        """Ask those whose turn it is, and take answers for a moment."""
        now = time.perf_counter()
        for each in self.all:
            if each.is_silent(now):
                self._fail(each, f"no answer for {SILENCE_S:.0f} s")
            elif each.is_due(now):
                self._try(each, is_question=True)
        for key, _ in self._selector.select(0.002):
            self._try(key.data, is_question=False)

    def _try(self, each: Asked, *, is_question: bool) -> None:
        now = time.perf_counter()
        try:
            each.ask(now) if is_question else each.hear(now)
        except (OSError, ValueError) as error:
            self._fail(each, f"{type(error).__name__}: {error}")

    def _fail(self, each: Asked, reason: str) -> None:
        each.counter.fail(f"{each.address[0]}: {reason}")
        self._selector.unregister(each.connection)
        each.connection.close()
        each.connection, each.rest, each.sent_at = connected(each.address), b"", None
        self._selector.register(each.connection, selectors.EVENT_READ, each)

    def gaps(self) -> dict[str, float]:
        """Return the longest wait of any server, and the median of all, since this was last asked."""
        longest = [each.counter.take_gap_ms() for each in self.all]
        return {"gap_ms": max(longest), "median_ms": statistics.median(longest)}

    def outcome(self) -> Outcome:
        """Return what was seen of all."""
        seen = [each.counter.outcome for each in self.all]
        return Outcome(
            requests=sum(each.requests for each in seen),
            failed=sum(each.failed for each in seen),
            lost=sum(each.lost for each in seen),
            longest_gap_ms=max(each.longest_gap_ms for each in seen),
            reason=next((each.reason for each in seen if each.reason), ""),
        )


def main(words: list[str]) -> int:
    """Ask until stdin ends."""
    prefix, first, count, port = words[0], *map(int, words[1:4])
    orders = Orders()
    try:
        many = Many([(f"{prefix}.{number}", port) for number in range(first, first + count)])
        say({"ready": True})
        while not orders.is_over:
            many.turn()
            if orders.gaps_wanted:
                orders.gaps_wanted -= 1
                say(many.gaps())
        say(asdict(many.outcome()))
    except OSError as error:
        say(asdict(Outcome(failed=1, reason=f"cannot reach {prefix}.{first} and so on: {error}")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

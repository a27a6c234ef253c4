# SPDX-License-Identifier: Apache-2.0
"""The clients: each keeps one connection, asks as fast as it may, checks every answer, and notes the longest silence.

    python load.py redis ADDRESS PORT [MEGABYTES [MB_S]]   fills Redis, then INCR after INCR, and SETs at random places, so
                                                           many MB a second; at the end reads everything again
    python load.py http ADDRESS PORT                       GET after GET on one keep-alive connection, a hundred a second

Runs as a process of its own in the clients' network namespace, and talks by lines: on stdout `{"ready": true}` at the
beginning; `gap` on stdin is answered with the longest silence since the last `gap`; the end of stdin with the `Outcome`.
Standard library only.
"""

import functools
import json
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

SILENCE_S = 30.0
"""After which a request counts as failed."""
RECONNECT_S = 30.0
HTTP_PAUSE_S = 0.01
CHUNK = 100_000
MEGABYTE = 1_000_000
SEED = 2
MOST_BEHIND_S = 0.2
"""Of the rewriting, after a pause: more is not made up for."""


@dataclass(kw_only=True)
class Outcome:
    """What a client saw."""

    requests: int = 0
    failed: int = 0
    lost: int = 0
    longest_gap_ms: float = 0.0
    seconds: float = 0.0
    rewritten_mb: float = 0.0
    reason: str = ""
    """Of the first failure."""


class Counter:
    """Checks that answers count up by one, and measures silences."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.expected: int | None = None
        self._gap = 0.0

    def take(self, answer: int, *, waited_s: float) -> None:
        """Note an answer.  A number that is too low means that increments were lost."""
        self.outcome.requests += 1
        if self.expected is not None and answer != self.expected:
            self.outcome.lost += abs(self.expected - answer)
        self.expected = answer + 1
        self._gap = max(self._gap, waited_s)
        self.outcome.longest_gap_ms = max(self.outcome.longest_gap_ms, waited_s * 1000)

    def fail(self, reason: str) -> None:
        """Note a request without an answer: whether it was done is unknown, so the next answer is not judged."""
        self.outcome.failed += 1
        self.outcome.reason = self.outcome.reason or reason
        self.expected = None

    def take_gap_ms(self) -> float:
        """Return the longest silence since this was last asked."""
        gap, self._gap = self._gap, 0.0
        return gap * 1000


class Orders:
    """What comes on stdin, read beside the work."""

    def __init__(self) -> None:
        self.gaps_wanted = 0
        self.is_over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip() == "gap":
                self.gaps_wanted += 1
        self.is_over = True


class Connection:
    """A connection that is read by lines and exact lengths."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_connection((address, port), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _more(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._rest += data

    def line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data


class Redis:
    """The counter in Redis, and the data beside it."""

    pause_s = 0.0

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self) -> int:
        self._connection.send(b"INCR counter\r\n")
        return self._number()

    def _number(self) -> int:
        line = self._connection.line()
        if not line.startswith(b":"):
            raise ConnectionError(f"Redis answered {line[:80]!r}")
        return int(line[1:])

    def fill(self, megabytes: int) -> None:
        """Store data that can be computed again."""
        for number, data in enumerate(chunks(megabytes)):
            self.store(number, data)

    def store(self, number: int, data: bytes) -> None:
        """Store one value."""
        head = b"*3\r\n$3\r\nSET\r\n$10\r\nd%09d\r\n$%d\r\n" % (number, len(data))
        self._connection.send(head + data + b"\r\n")
        if (line := self._connection.line()) != b"+OK":
            raise ConnectionError(f"Redis answered {line[:80]!r}")

    def count_wrong(self, versions: Iterable[int]) -> int:
        """Return how many of the stored values are not what they were.  versions: how often each was rewritten."""
        wrong = 0
        for number, version in enumerate(versions):
            data = value(number, version=version)
            self._connection.send(b"GET d%09d\r\n" % number)
            length = int(self._connection.line()[1:])
            wrong += length != len(data) or self._connection.exactly(length + 2)[:-2] != data
        return wrong


class Http:
    """A web server that numbers its answers."""

    pause_s = HTTP_PAUSE_S

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self) -> int:
        self._connection.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        status = self._connection.line()
        length = 0
        while line := self._connection.line():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._connection.exactly(length)
        if status.split()[1:2] != [b"200"]:
            raise ConnectionError(f"the web server answered {status[:80]!r}")
        return int(body)


class Rewriting:
    """Which value is to be stored anew, and when: so many MB a second, at random places.  Pure."""

    def __init__(self, megabytes: int, *, mb_s: float = 0.0) -> None:
        self.versions = [0] * (megabytes * MEGABYTE // CHUNK)
        self._interval_s = CHUNK / (mb_s * MEGABYTE) if mb_s else 0.0
        self._next = 0.0
        self._choice = random.Random(SEED)

    def due(self, now: float) -> int | None:
        """Return the number of the value whose turn it is, if it is anybody's turn.  What a pause kept back follows."""
        if not self._interval_s or not self.versions or now < self._next:
            return None
        self._next = max(self._next, now - MOST_BEHIND_S) + self._interval_s
        return self._choice.randrange(len(self.versions))


@functools.cache
def _base() -> bytes:
    return random.Random(SEED).randbytes(CHUNK)


def value(number: int, *, version: int = 0) -> bytes:
    """Return what a value holds after so many rewrites: 100 kB, no two alike."""
    source = random.Random(number * 1_000_003 + version)
    start = source.randrange(CHUNK)
    return (source.randbytes(64) + _base()[start:] + _base()[:start])[:CHUNK]


def chunks(megabytes: int) -> Iterator[bytes]:
    """Yield the data that Redis holds at first, the same each time."""
    return (value(number) for number in range(megabytes * MEGABYTE // CHUNK))


def connect(kind: type[Redis] | type[Http], address: str, *, port: int) -> Redis | Http:
    """Connect, trying again for a while: a server that starts or moves may not listen yet."""
    deadline = time.monotonic() + RECONNECT_S
    while True:
        try:
            return kind(Connection(address, port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            select.select([], [], [], 0.02)


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def run(
    kind: type[Redis] | type[Http], address: str, *, port: int, megabytes: int, mb_s: float = 0.0
) -> Outcome:
    """Ask until stdin ends."""
    counter, orders = Counter(), Orders()
    server = connect(kind, address, port=port)
    rewriting = Rewriting(megabytes, mb_s=mb_s)
    if isinstance(server, Redis):
        server.fill(megabytes)
    counter.take(server.ask(), waited_s=0.0)
    say({"ready": True})
    begun = since = time.perf_counter()
    while not orders.is_over:
        try:
            answer = server.ask()
            now = time.perf_counter()
            counter.take(answer, waited_s=now - since)
            since = now
            if isinstance(server, Redis):
                rewrite(server, rewriting, now=now)
        except (OSError, ValueError) as error:
            counter.fail(f"{type(error).__name__}: {error}")
            server = connect(kind, address, port=port)
        if orders.gaps_wanted:
            orders.gaps_wanted -= 1
            say({"gap_ms": counter.take_gap_ms()})
        if server.pause_s:
            select.select([], [], [], server.pause_s)
            since = time.perf_counter()
    counter.outcome.seconds = time.perf_counter() - begun
    if isinstance(server, Redis):
        counter.outcome.rewritten_mb = sum(rewriting.versions) * CHUNK / MEGABYTE
        counter.outcome.lost += server.count_wrong(rewriting.versions)
    return counter.outcome


def rewrite(server: Redis, rewriting: Rewriting, *, now: float) -> None:
    """Store a value anew if it is time; the next answer's silence has this in it."""
    number = rewriting.due(now)
    if number is not None:
        version = rewriting.versions[number] + 1
        server.store(number, value(number, version=version))
        rewriting.versions[number] = version


def main(words: list[str]) -> int:
    kinds: dict[str, type[Redis] | type[Http]] = {"redis": Redis, "http": Http}
    kind, address, port, *rest = words
    try:
        outcome = run(
            kinds[kind],
            address,
            port=int(port),
            megabytes=int(rest[0]) if rest else 0,
            mb_s=float(rest[1]) if rest[1:] else 0.0,
        )
    except OSError as error:
        outcome = Outcome(failed=1, reason=f"cannot reach {address}:{port}: {error}")
    say(asdict(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

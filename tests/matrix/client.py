# SPDX-License-Identifier: Apache-2.0
"""The load of one program: a process in the clients' network namespace that asks one numbered thing after the other.

    python -m tests.matrix.client KIND ADDRESS PORT CONNECTIONS SECONDS [WORDS]

Its connections take turns and are never made anew: one that breaks is a failure.  It talks by lines: `{"ready": true}` at
the beginning; each `gap` on stdin is answered with the longest wait since the last one; the end of stdin with the outcome,
after everything that was written has been read again.  Standard library only.
"""

import json
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.matrix import binary, protocols
from tests.matrix.wire import Session, WrongAnswer

KINDS: dict[str, Callable[..., Session]] = {
    "beanstalk": protocols.Beanstalk,
    "dns": binary.Dns,
    "ftp": protocols.Ftp,
    "gearman": binary.Gearman,
    "http": protocols.Http,
    "irc": protocols.Irc,
    "lines": protocols.Lines,
    "mariadb": binary.MariaDb,
    "memcached": protocols.Memcached,
    "mqtt": binary.Mqtt,
    "nats": protocols.Nats,
    "postgres": binary.Postgres,
    "redis": protocols.Redis,
    "smtp": protocols.Smtp,
    "ssh": protocols.Ssh,
    "stream": protocols.Stream,
    "web": protocols.Web,
}
PAUSE_S = 0.003
"""Between requests: both hosts and the client share this machine."""
RETRY_S = 0.1
ERRORS = (OSError, WrongAnswer, ValueError, IndexError)


@dataclass(kw_only=True)
class Outcome:
    """What the client saw."""

    answers: int = 0
    problem: str = ""
    """A broken connection, a lost or doubled write.  Empty: none."""


class Orders:
    """What comes on stdin, read beside the work."""

    def __init__(self) -> None:
        self.gaps_wanted = 0
        self.is_over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self.gaps_wanted += line.strip() == "gap"
        self.is_over = True


def connect(make: Callable[[], Session], *, seconds: float) -> Session:
    """Connect, trying again while the program starts."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return make()
        except ERRORS as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"not ready within {seconds:.0f} s: {error}") from error
        select.select([], [], [], RETRY_S)


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


class Load:
    """The connections and what they saw."""

    def __init__(self, sessions: list[Session]) -> None:
        self._sessions = sessions
        self._orders = Orders()
        self._gap_s = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Ask until stdin ends, then read everything again."""
        try:
            self._next()
            say(ready=True)
            while not self._orders.is_over:
                self._next()
                self._answer_orders()
                select.select([], [], [], PAUSE_S)
            self._sessions[0].verify(self.outcome.answers)
        except ERRORS as error:
            self.outcome.problem = f"{type(error).__name__}: {error}"
        for session in self._sessions:
            session.close()
        while self.outcome.answers and not self._orders.is_over:
            self._answer_orders()
            select.select([], [], [], PAUSE_S)
        return self.outcome

    def _next(self) -> None:
        number = self.outcome.answers + 1
        since = time.perf_counter()
        self._sessions[number % len(self._sessions)].ask(number)
        self._gap_s = max(self._gap_s, time.perf_counter() - since)
        self.outcome.answers = number

    def _answer_orders(self) -> None:
        if self._orders.gaps_wanted:
            self._orders.gaps_wanted -= 1
            say(gap_ms=self._gap_s * 1000, answers=self.outcome.answers, problem=self.outcome.problem)
            self._gap_s = 0.0


def main(words: list[str]) -> int:
    kind, address, port, connections, seconds, *rest = words

    def make() -> Session:
        return KINDS[kind](address, int(port), *rest)

    try:
        sessions = [connect(make, seconds=float(seconds)) for _ in range(int(connections))]
    except OSError as error:
        outcome = Outcome(problem=f"cannot begin: {error}")
    else:
        outcome = Load(sessions).run()
    say(**asdict(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

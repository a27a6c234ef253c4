# SPDX-License-Identifier: Apache-2.0
"""How long a source stands frozen for a target that does not come to `Held`, and how the target says that it is at work.

While its CRIU restores, the target says `Working` twice a second, from a thread of its own: only then, when nobody else uses the
connection there, whose TLS is not made for two at once.  The source, whose program stands still, waits for `Held`

    for a first word  SILENCE_SECONDS, as for anything: the target may have to write what is still on its way
    for a word        HEARD_SECONDS: eight beats.  What the network loses is sent again after 0.2, 0.6, 1.4 and 3 s (RFC 6298,
                      Linux's least timeout of 0.2 s, doubled), so a beat that is lost three times in a row still arrives.
    all in all        ten times the pause that was allowed, at least LEAST_SECONDS, at most MOST_SECONDS: a forecast kept the
                      whole pause within the allowance, so a restore that takes ten such pauses is not late but in trouble; a
                      machine without a free processor needs LEAST_SECONDS for one of 0.3 s.  A target that lies, and says for
                      ever that it is at work, holds the program no longer.
    and no longer     than until somebody cancels, which is looked at with each word.

Before the commit it is always safe to give up: the source thaws, and a target that hears nothing more, or a `Refuse`,
undoes what it has made, since only the source's commit could have made it the owner.  So these bounds weigh
only a move that would have come through late against a program that stands still for nothing.

That a target speaks does not prove that its CRIU goes on; that is the target's own to see (`runtime/stall.py`).
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from insula.migrate.wire import SILENCE_SECONDS, Wire
from insula.model.errors import InsulaError, MigrationFailed, ProtocolError
from insula.model.migration import Held, Missing, Restore, Working

BEAT_SECONDS = 0.5
HEARD_SECONDS = 4.0
ALLOWED_PAUSES = 10
LEAST_SECONDS = 15.0
MOST_SECONDS = 600.0

Pages = dict[int, tuple[tuple[int, int], ...]]


def held_within_s(max_pause_s: float) -> float:
    """Return how long a source waits for `Held`, in seconds, by the pause that it may take (infinite: any).  Pure."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, ALLOWED_PAUSES * max_pause_s))


def await_held(
    wire: Wire, *, within_s: float, on_missing: Callable[[Pages], None], check: Callable[[], None]
) -> None:
    """Have the target restore, and wait until everything stands there.

    on_missing: sends pages that it wants; it is asked again then.  check: called with each word; raises to give up.
    Raises: MigrationFailed if it says nothing, or does not come to an end; ProtocolError.
    """
    deadline = time.monotonic() + within_s
    heard_s = float(SILENCE_SECONDS)
    wire.send(Restore())
    while True:
        if time.monotonic() > deadline:
            raise MigrationFailed(
                f"cannot wait for the other host any longer: it has not restored it within {within_s:.0f} s",
                hint="see the log of the other host's insulad; --max-pause with more waits longer",
            )
        match wire.receive(within_s=heard_s):
            case Held():
                return
            case Working():
                heard_s = HEARD_SECONDS
                check()
            case Missing(pages=pages):
                on_missing(pages)
                check()
                wire.send(Restore())
            case other:
                raise ProtocolError(f"cannot go on: the peer sent {type(other).__name__}")


class Heart(threading.Thread):
    """Says `Working` on a wire until it is stopped: a context, which may be stopped before its end."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(name="heart", daemon=True)
        self._wire = wire
        self._over = threading.Event()
        self._lost = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._wire.send(Working(what="restore"))
            except InsulaError as error:
                self._lost = error.message
                return

    def check(self) -> None:
        """Raises: MigrationFailed if the other host cannot be told any more."""
        if self._lost:
            raise MigrationFailed(self._lost)

    def stop(self) -> None:
        """Say no more.  May be called again."""
        self._over.set()
        self.join()

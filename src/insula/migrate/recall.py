# SPDX-License-Identifier: Apache-2.0
"""Call a container back from the host to which it was carried: after a drain, when this host is ready again.

    host that wants it back                        host that has it
      │ Recall {container} ────────────────────────► │  did it come from that host?  Else there is no such container.
      │ ◄──────────────── a migration, as any other │
      │ ◄─────────────────────────── Working {what} │  now and then, so that nobody thinks it dead
      │ ◄────────────────────────── Recalled, Refuse │

Out of scope: which containers, and when (`daemon/draining.py`).
"""

import time
from typing import Protocol

from insula.migrate.source import migrate
from insula.migrate.wire import Peers, Wire
from insula.model import span
from insula.model.errors import ContainerNotFound, ProtocolError
from insula.model.grant import Grant
from insula.model.migration import Recall, Recalled, Working
from insula.model.spec import MigrateWish
from insula.runtime.context import Runtime

TELL_SECONDS = 2.0
"""Between two words of progress."""


class Reporter(Protocol):
    """How the one who calls back is told."""

    def message(self, text: str) -> None: ...


def recall(
    peers: Peers, *, host: str, container: str, reporter: Reporter, max_pause_ms: int | None = None
) -> None:
    """Have a paired host carry a container back to this one; wait until it is here.

    max_pause_ms: the longest that it may stand still; None: what it says itself.

    Raises: HostNotFound, TargetUnreachable, ContainerNotFound, MigrationFailed and its kind.
    """
    wire = Wire(peers.open(peers.find(host)))
    try:
        wire.send(Recall(container=container, max_pause_ms=max_pause_ms, traceparent=span.traceparent()))
        while True:
            match wire.receive():
                case Working(what=what):
                    reporter.message(what)
                case Recalled():
                    return
                case other:
                    raise ProtocolError(f"cannot go on: the peer sent {type(other).__name__}")
    finally:
        wire.close()


def serve_recall(
    grant: Grant, runtime: Runtime, message: Recall, *, wire: Wire, peer: str, peers: Peers
) -> None:
    """Carry a container back to the host that it came from.

    Raises: ContainerNotFound, also for one that came from elsewhere; what `migrate` raises.
    """
    record = runtime.store.get_container(message.container)
    if record.came_from != peer:
        raise ContainerNotFound(f"cannot find container `{message.container[:12]}`")
    wish = MigrateWish(target=peer, max_pause_ms=message.max_pause_ms)
    with runtime.tracer.root("migrate", parent=message.traceparent, attributes=span.about(record)):
        migrate(grant, runtime, record.id, wish=wish, peers=peers, reporter=_Telling(wire))
    wire.send(Recalled())


class _Telling:
    """Tells the other host what is going on; nobody here can cancel it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._told_at = 0.0

    def check(self) -> None:
        return

    def forbid_cancel(self) -> None:
        return

    def phase(self, name: str) -> None:
        span.enter_phase(name)
        self._tell(name)

    def message(self, text: str) -> None:
        self._tell(text)

    def progress(self, done: int, total: int, *, unit: str = "bytes") -> None:
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._tell(f"{done} of {total} {unit}")

    def _tell(self, what: str) -> None:
        self._told_at = time.monotonic()
        self._wire.send(Working(what=what))

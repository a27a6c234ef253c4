# SPDX-License-Identifier: Apache-2.0
"""Before a network goes from under a container: have those who leave hear the last word.

A connection that a program has closed belongs to no process any more; the kernel alone sends what is left of the answer, and the
end.  CRIU does not find it, so it does not travel, and its peer would wait for the rest for ever.  Until the peer has
acknowledged all:

    before the freeze      the program runs on; LEAVE_SECONDS.  Who is silent for so long may be gone for good: he is not waited for
    every process stands   no more can be closed; a round trip is enough for who came meanwhile.  This is part of the pause

Out of scope: connections that a process still has (CRIU carries them), and who has not been accepted yet (`callers.py`).
Sources: tcp(7); `net/ipv4/tcp.c`, "tcp_close": the socket has no inode then.
"""

import logging
import os
from collections.abc import Iterable

from insula.kernel.netlink import namespace_entered
from insula.kernel.sock_diag import TcpSocket, TcpState, tcp_sockets
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0
"""More than two retransmissions to a peer nearby."""
STANDING_SECONDS = 0.1
LOOK_SECONDS = 0.001
_LEAVING = (TcpState.FIN_WAIT1, TcpState.CLOSING, TcpState.LAST_ACK)


class Leavers:
    """Those who leave one container before one freeze."""

    def __init__(self, runtime: Runtime, record: ContainerRecord) -> None:
        self._runtime, self._record = runtime, record
        self._silent: frozenset[bytes] = frozenset()

    def see_off(self) -> None:
        """Wait while the program runs."""
        self._silent = self._wait(LEAVE_SECONDS)

    def see_off_last(self, *, seconds: float) -> None:
        """Wait while all of its processes stand, for at most so long and STANDING_SECONDS."""
        if rest := self._wait(min(seconds, STANDING_SECONDS)):
            fields = {"container": self._record.id[:12], "count": str(len(rest))}
            LOG.warning("peers did not hear the end of closed connections", extra={"fields": fields})

    def _wait(self, seconds: float) -> frozenset[bytes]:
        """Returns: who is left; nobody if there was no time to look."""
        left: frozenset[bytes] = frozenset()
        for _ in range(int(seconds / LOOK_SECONDS)):
            left = frozenset(each.ends for each in leaving(self._record.pid)) - self._silent
            if not left or self._runtime.closing.wait(LOOK_SECONDS):
                return frozenset()
        return left


def leaving(pid: int) -> Iterable[TcpSocket]:
    """Yield the connections in a process's network namespace that nobody has any more, and whose end was not heard."""
    return (each for each in sockets_of(pid, _LEAVING) if not each.inode and each.unheard_bytes)


def sockets_of(pid: int, states: Iterable[TcpState]) -> list[TcpSocket]:
    """Return TCP sockets of a process's network namespace; none if it is gone, or where the kernel cannot tell."""
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with namespace_entered(namespace):
                return tcp_sockets(states)
        finally:
            os.close(namespace)
    except OSError as error:
        LOG.info("sockets are not known", extra={"fields": {"reason": str(error)}})
        return []

# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is just now: deadlines are multiples of what a move took last, so that a busy machine fails nothing."""

from collections import deque

QUIET_MOVE_S = 0.8
"""A move without a fault, on two processors that do nothing else."""
KEPT = 4
MOST = 8.0
"""Deadlines are not stretched by more: what is not over then has failed on any machine."""


class Pace:
    """Learns from moves that nothing disturbed; gives deadlines."""

    def __init__(self) -> None:
        self._moves: deque[float] = deque(maxlen=KEPT)

    def note(self, move_s: float) -> None:
        self._moves.append(move_s)

    @property
    def slowness(self) -> float:
        """Return how many times longer than on a quiet machine a move takes: the slowest of the last."""
        return max(1.0, max(self._moves, default=0.0) / QUIET_MOVE_S)

    def allow(self, quiet_s: float) -> float:
        """Return the deadline in seconds for what may take so long on a quiet machine."""
        return quiet_s * min(MOST, self.slowness)

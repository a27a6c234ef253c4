# SPDX-License-Identifier: Apache-2.0
"""Only so many containers of a host stand still for a move at a time: a pause is work for two processors, and several at once
would each last as long as all of them.

What is done before a freeze goes on beside it.  One whose pause does not end, because its target does not answer, holds up
others only for a moment.  Out of scope: how many moves there are at a time (`cluster/drain.py`).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TURN_SECONDS = 1.0
"""As long is waited for one's turn, then it is taken anyway."""


class Turns:
    """The turns of one host.  count: how many at a time; 0: by its processors."""

    def __init__(self, *, count: int = 0) -> None:
        self._free = threading.BoundedSemaphore(count or max(1, (os.cpu_count() or 1) // 2))

    @contextmanager
    def take(self) -> Iterator[bool]:
        """Wait for a turn and hold it.  Yields: whether it was waited for."""
        is_free = self._free.acquire(blocking=False)
        is_held = is_free or self._free.acquire(timeout=TURN_SECONDS)
        try:
            yield not is_free
        finally:
            if is_held:
                self._free.release()

# SPDX-License-Identifier: Apache-2.0
"""Containers of which it is not known who owns them, and what an administrator decides about them.

Who waits for the other host's answer (`migrate/settle.py`) stands here meanwhile, and hears the decision.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from insula.model.spec import Resolution


class Doubts:
    """The containers in doubt; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decided: dict[str, Resolution | None] = {}

    @contextmanager
    def entered(self, container_id: str) -> Iterator[None]:
        """Stand in doubt for a while."""
        with self._changed:
            self._decided.setdefault(container_id, None)
        try:
            yield
        finally:
            with self._changed:
                self._decided.pop(container_id, None)
                self._changed.notify_all()

    def wait(self, container_id: str, *, seconds: float) -> Resolution | None:
        """Wait for a decision, at most that long."""
        with self._changed:
            self._changed.wait_for(lambda: self._decided.get(container_id) is not None, seconds)
            return self._decided.get(container_id)

    def decide(self, container_id: str, resolution: Resolution) -> bool:
        """Decide.  Returns: False if there is no doubt."""
        with self._changed:
            if container_id not in self._decided:
                return False
            self._decided[container_id] = resolution
            self._changed.notify_all()
            return True

    def wait_settled(self, container_id: str, *, seconds: float) -> bool:
        """Wait until the decision has been acted upon."""
        deadline = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(
                lambda: container_id not in self._decided, max(0.0, deadline - time.monotonic())
            )

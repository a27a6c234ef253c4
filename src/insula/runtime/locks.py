# SPDX-License-Identifier: Apache-2.0
"""One lock for each container that somebody works with at this moment; who is not worked with has none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_FOR_EVER = -1.0
"""As `threading.Lock.acquire` has it."""


@dataclass(slots=True)
class _Held:
    lock: threading.RLock = field(default_factory=threading.RLock)
    users: int = 0
    """Who holds it or waits for it: it may go only after the last of them."""


class Locks:
    """Locks by name."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a name; the same thread may do so again."""
        with self.hold_within(name, seconds=_FOR_EVER):
            yield

    @contextmanager
    def hold_within(self, name: str, *, seconds: float) -> Iterator[bool]:
        """Hold a name if it can be had within that time.  Yields: whether it is held."""
        with self._guard:
            held = self._held.setdefault(name, _Held())
            held.users += 1
        is_held = False
        try:
            is_held = held.lock.acquire(timeout=seconds)
            yield is_held
        finally:
            if is_held:
                held.lock.release()
            with self._guard:
                held.users -= 1
                if not held.users:
                    del self._held[name]

# SPDX-License-Identifier: Apache-2.0
"""How long the phases of a move took."""

import time
from collections.abc import Mapping


class Stopwatch:
    """Milliseconds of named phases, in order."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.phases: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.monotonic()
        self.phases[name] = round(self.phases.get(name, 0.0) + (now - self._last) * 1000, 1)
        self._last = now

    def results(self) -> Mapping[str, float]:
        return {f"{name}_ms": value for name, value in self.phases.items()}

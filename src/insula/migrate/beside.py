# SPDX-License-Identifier: Apache-2.0
"""Something that is done beside the pause's own way: the last round, a last look at mappings."""

import threading
from collections.abc import Callable

from insula.model.errors import InsulaError


class Beside(threading.Thread):
    """Work in a thread of its own, whose failure is the caller's."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="beside-pause", daemon=True)
        self._work = work
        self._failure: InsulaError | OSError | None = None

    def run(self) -> None:
        try:
            self._work()
        except (InsulaError, OSError) as error:
            self._failure = error

    def result(self) -> None:
        """Wait for its end.  Raises: what it failed with."""
        self.join()
        if self._failure is not None:
            raise self._failure

    def join(self, timeout: float | None = None) -> None:
        if self.ident is not None:  # else it was never begun
            super().join(timeout)

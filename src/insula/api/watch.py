# SPDX-License-Identifier: Apache-2.0
"""What the API asks of `daemon/watching.py`.  Blocking; called in threads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from insula.model.grant import Grant
from insula.model.monitor import ContainerCounts, TraceLine, TraceWish


class Trace(Protocol):
    """An open trace.  `read` takes what has come, without waiting."""

    def read(self, *, at_most: int) -> list[TraceLine]: ...


class Counting(Protocol):
    """System calls are counted while this is open.  `read` also takes in containers that have started meanwhile."""

    def read(self) -> list[ContainerCounts]: ...


class Monitor(Protocol):
    """What the API asks of `daemon/watching.py`.  Blocking, called in threads."""

    def trace(
        self, grant: Grant, ref: str, *, wish: TraceWish, notify: Callable[[], None]
    ) -> AbstractContextManager[Trace]: ...
    def counts(self, grant: Grant) -> list[ContainerCounts]: ...
    def counting(self, grant: Grant, ref: str) -> AbstractContextManager[Counting]: ...

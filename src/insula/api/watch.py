# SPDX-License-Identifier: Apache-2.0
"""What the API asks of `daemon/watching.py` and its neighbours.  Blocking; called in threads."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from insula.model.export import SinkCounts
from insula.model.grant import Grant, Principal
from insula.model.history import Usage
from insula.model.monitor import ContainerCounts, TraceLine, TraceWish
from insula.model.profile import Applied, ApplyWish, ContainerDrifts, Drift, Profile
from insula.monitor.rules import Rule
from insula.tenant.redaction import Redaction


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
    def counting(
        self, grant: Grant, ref: str, *, only: frozenset[str] = frozenset()
    ) -> AbstractContextManager[Counting]: ...


class HistoryBook(Protocol):
    """What containers used during the last hour: `daemon/sampler.py`."""

    def usage(self, grant: Grant, ref: str, *, seconds: float, step_s: float) -> list[Usage]: ...
    def totals(self, grant: Grant, *, seconds: float) -> list[Usage]: ...
    def close(self) -> None: ...


class Profiles(Protocol):
    """What containers use, recorded."""

    def record(self, grant: Grant, ref: str) -> None: ...
    def recorded(self, grant: Grant, ref: str) -> Profile: ...
    def save(self, grant: Grant, ref: str, *, name: str) -> Profile: ...
    def apply(self, grant: Grant, ref: str, *, wish: ApplyWish) -> Applied: ...
    def release(self, grant: Grant, ref: str) -> Applied: ...
    def list(self, grant: Grant) -> list[Profile]: ...
    def get(self, grant: Grant, name: str) -> Profile: ...
    def put(self, grant: Grant, name: str, *, text: bytes) -> Profile: ...
    def delete(self, grant: Grant, name: str) -> None: ...


class DriftBook(Protocol):
    """What containers do that their profiles lack: `daemon/drifting.py`."""

    def drifts(self, grant: Grant, ref: str) -> list[Drift]: ...
    def counts(self, grant: Grant) -> list[ContainerDrifts]: ...
    def close(self) -> None: ...


class Sight(Protocol):
    """What of all that is told to whom: `daemon/sight.py`."""

    def of_reader(self, principal: Principal, tenant: str) -> Redaction: ...


class Exports(Protocol):
    """What leaves the host unasked: `daemon/exporting.py`."""

    def counts(self) -> Sequence[SinkCounts]: ...
    def close(self) -> None: ...


class RuleBook(Protocol):
    """The rules that count: `daemon/guard.py`."""

    @property
    def rules(self) -> tuple[Rule, ...]: ...
    def reload(self) -> None: ...
    def reload_or_keep(self) -> None: ...
    def close(self) -> None: ...

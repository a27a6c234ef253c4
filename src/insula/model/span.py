# SPDX-License-Identifier: Apache-2.0
"""Spans: how long each part of an action took, and of what it was a part, also across hosts.  Pure: no I/O.

    an operation, a request ── Tracer.root ──► an open span, known to its thread
                                 enter_phase("freeze") ──► a child of it, until the next phase or its end
    another host's message {traceparent} ── Tracer.root(parent=…) ──► the same trace goes on here

If nobody traces there is no root, and all of this does nothing.  Times are nanoseconds since the epoch; within one root
they are taken from the monotonic clock, so that a part never lies outside of its whole.
Source: W3C Trace Context, 3.2 (`traceparent`).
"""

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

from insula.model.errors import InsulaError
from insula.model.record import ContainerRecord

Attribute: TypeAlias = str | int | float | bool
Attributes: TypeAlias = Mapping[str, Attribute]

TENANT, CONTAINER = "insula.tenant", "container.name"
WHOSE = (TENANT, CONTAINER)
"""Attributes that parts have from their whole."""
_TRACE_BYTES, _SPAN_BYTES = 16, 8
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.ASCII)
_VERSION = "00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that has ended."""

    name: str
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str = ""
    """Empty: the trace begins with it."""
    is_of_peer: bool = False
    """Whether its parent is on another host, or at a client."""
    begun_ns: int
    ended_ns: int
    attributes: Attributes = field(default_factory=dict)
    error: str = ""
    """The error's code; empty: it went well."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A span that goes on elsewhere."""

    trace_id: str
    span_id: str


def traceparent_of(parent: Parent) -> str:
    """Return how others are told of a span that they go on below."""
    return f"{_VERSION}-{parent.trace_id}-{parent.span_id}-01"


Deliver: TypeAlias = Callable[[Span], None]


def parse(traceparent: str) -> Parent | None:
    """Read a traceparent; None for what is none.  Who sends nonsense begins a trace of their own."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == _VERSION and found[4]):
        return None
    trace_id, span_id = found[2], found[3]
    return Parent(trace_id, span_id) if int(trace_id, 16) and int(span_id, 16) else None


class OpenSpan:
    """Something that goes on.  From any thread."""

    def __init__(
        self,
        name: str,
        *,
        deliver: Deliver,
        clock: Callable[[], int],
        parent: Parent | None,
        is_of_peer: bool = False,
        attributes: Attributes | None = None,
    ) -> None:
        self.name = name
        self.trace_id = parent.trace_id if parent else secrets.token_hex(_TRACE_BYTES)
        self.span_id = secrets.token_hex(_SPAN_BYTES)
        self.parent = parent
        self._is_of_peer = is_of_peer
        self._deliver = deliver
        self._clock = clock
        self._attributes = dict(attributes or {})
        self._phase: OpenSpan | None = None
        self._lock = threading.Lock()
        self._is_over = False
        self._begun_ns = clock()

    @property
    def traceparent(self) -> str:
        """By which another host goes on with this trace, below this span."""
        return traceparent_of(Parent(self.trace_id, self.span_id))

    def note(self, attributes: Attributes) -> None:
        """Tell more of it."""
        with self._lock:
            self._attributes.update(attributes)

    def child(self, name: str, *, attributes: Attributes | None = None) -> "OpenSpan":
        """Begin a part of it; whose it is, the part is, too."""
        return OpenSpan(
            name,
            deliver=self._deliver,
            clock=self._clock,
            parent=Parent(self.trace_id, self.span_id),
            attributes={
                **{key: self._attributes[key] for key in WHOSE if key in self._attributes},
                **(attributes or {}),
            },
        )

    def enter_phase(self, name: str) -> None:
        """Begin a part that lasts until the next one, or until the end of all."""
        with self._lock:
            if self._is_over:
                return
            before, self._phase = self._phase, self.child(name)
        if before is not None:
            before.end()

    def end(self, *, error: str = "") -> None:
        """End it, and the phase it is in.  Again: nothing."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        if self._phase is not None:
            self._phase.end(error=error)
        self._deliver(
            Span(
                name=self.name,
                trace_id=self.trace_id,
                span_id=self.span_id,
                parent_id=self.parent.span_id if self.parent else "",
                is_of_peer=self._is_of_peer,
                begun_ns=self._begun_ns,
                ended_ns=self._clock(),
                attributes=self._attributes,
                error=error,
            )
        )

    def drop(self) -> None:
        """Tell nobody of it."""
        with self._lock:
            self._is_over = True


_current: ContextVar[OpenSpan | None] = ContextVar("span", default=None)


def current() -> OpenSpan | None:
    """Return what goes on in this thread, or task."""
    return _current.get()


def traceparent() -> str:
    """Return by what another host goes on with the trace of this thread; empty: nobody traces."""
    span = _current.get()
    return span.traceparent if span is not None else ""


def enter_phase(name: str) -> None:
    """Begin a phase of what goes on in this thread, or task."""
    span = _current.get()
    if span is not None:
        span.enter_phase(name)


def origin() -> str:
    """Return the traceparent of who asked for what goes on in this thread; empty: somebody who does not trace."""
    span = _current.get()
    if span is None or span.parent is None:
        return ""
    return traceparent_of(span.parent)


def note(attributes: Attributes) -> None:
    """Tell more of what goes on in this thread."""
    span = _current.get()
    if span is not None:
        span.note(attributes)


def about(record: ContainerRecord) -> Attributes:
    """Return what a span tells of a container."""
    return {"container.id": record.id, CONTAINER: record.name, TENANT: record.tenant}


def end() -> None:
    """End what goes on in this thread before its block does: what follows is nobody's wait."""
    span = _current.get()
    if span is not None:
        span.end()


@contextmanager
def part_of(
    whole: OpenSpan | None, name: str, *, attributes: Attributes | None = None
) -> Iterator[OpenSpan | None]:
    """Have a part of something go on in this thread while the block runs; None: of nothing."""
    if whole is None:
        yield None
        return
    with _going_on(whole.child(name, attributes=attributes)) as span:
        yield span


class Tracer:
    """Where traces begin."""

    def __init__(self, deliver: Deliver | None = None) -> None:
        """deliver: gets each span when it has ended, must not wait; None: nobody traces."""
        self.deliver = deliver

    @contextmanager
    def root(
        self, name: str, *, parent: str = "", attributes: Attributes | None = None
    ) -> Iterator[OpenSpan | None]:
        """Have something go on in this thread while the block runs.  parent: the traceparent of who asked for it."""
        deliver = self.deliver
        if deliver is None:
            yield None
            return
        found = parse(parent)
        span = OpenSpan(
            name,
            deliver=deliver,
            clock=_clock(),
            parent=found,
            is_of_peer=found is not None,
            attributes=attributes,
        )
        with _going_on(span):
            yield span


@contextmanager
def _going_on(span: OpenSpan) -> Iterator[OpenSpan]:
    token = _current.set(span)
    try:
        yield span
    except BaseException as error:
        span.end(error=error.code if isinstance(error, InsulaError) else type(error).__name__)
        raise
    else:
        span.end()
    finally:
        _current.reset(token)


def _clock() -> Callable[[], int]:
    offset = time.time_ns() - time.monotonic_ns()
    return lambda: offset + time.monotonic_ns()

# SPDX-License-Identifier: Apache-2.0
"""What leaves this host without a reader who asks: events, changes and traces, each to the sinks that are meant.

    a change of a container, an alarm ──────────────┐
    events of containers, as sinks want them ───────┼─► redacted (`[role.export]`) ─► each sink's queue (`export/sink.py`)
    spans of operations, requests and arrivals ─────┘

The file is read at the start, at SIGHUP and at `insula export reload`; a wrong one is refused and what counted before stays.
Nothing here waits for a sink.  Nothing is watched, imported or started that is not configured.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from insula.daemon import log
from insula.daemon.config_file import read_roots_file
from insula.daemon.following import Following
from insula.daemon.options import Options
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.export.config import MAX_BYTES, Exports, read_exports
from insula.export.places import Places
from insula.export.sink import CLOSE_S, Sink
from insula.export.syslog import Address, Facility, Line, Syslog
from insula.model.change import Change
from insula.model.errors import InvalidExport
from insula.model.export import SinkCounts, Told
from insula.model.grant import EVERY_TENANT
from insula.model.monitor import Event, EventKind, Lost, TraceLine, TraceWish
from insula.model.record import ContainerRecord
from insula.model.span import WHOSE, Span, Tracer
from insula.monitor.collect import Collector
from insula.runtime.context import Runtime
from insula.runtime.store import Store

LOG = logging.getLogger(__name__)


def begin(options: Options, *, sight: Sight) -> "Exporter":
    """Open what the daemon's words say, and have insulad's log tell no more than them.

    Raises: InvalidExport, so that insulad does not start with less than is meant.
    """
    log.hide(sight.of_export)
    return Exporter(options.exports, host=options.name, sight=sight, audit_to=options.syslog)


def _audit(address: str, *, host: str) -> Sink[Line]:
    carrier = Syslog[Line](
        Address.parse(address),
        lambda line: line,
        host=host,
        facility=Facility.AUTHPRIV,
        message_id="audit",
    )
    return Sink(f"audit {address}", carrier)


class Exporter:
    """Who gets what.  From any thread."""

    def __init__(self, path: Path, *, host: str, sight: Sight, audit_to: str = "") -> None:
        """path: the file that lists the sinks; a missing one lists none.  audit_to: a syslog for the audit's lines; empty: none.

        Raises: InvalidExport for a wrong file, or certificates that cannot be read; InvalidSpec for what is no address
        of a syslog.
        """
        self._path = path
        self._host = host
        self._sight = sight
        self._lock = threading.Lock()
        """Held while something is offered: what is offered to a sink is offered before it is closed."""
        self._reloading = threading.Lock()
        self._places = Places().changed_to(self._read(), host=host)
        self._closing: list[Sink[Told] | Sink[Span]] = []
        self._audit = _audit(audit_to, host=host) if audit_to else None
        self._store: Store | None = None
        self._begin_following: Callable[[], Following] | None = None
        self._following: Following | None = None
        self.tracer = Tracer()
        """Where traces begin that are exported."""
        self._trace_or_not()

    def _read(self) -> Exports:
        text = read_roots_file(self._path, name="exports", max_bytes=MAX_BYTES, error=InvalidExport)
        return read_exports(text)

    def check(self, text: str) -> None:
        """Read a list of sinks and change nothing.  Raises: InvalidExport with section and reason."""
        read_exports(text)

    def reload(self) -> None:
        """Let the file count from now on.  Raises: InvalidExport, and nothing has changed."""
        with self._reloading:
            before, places = self._places, self._places.changed_to(self._read(), host=self._host)
            with self._lock:
                self._places = places
            self._trace_or_not()
            self._watch_what_is_wanted()
            left_out = [each for each in before.sinks if each not in places.sinks]
            for sink in left_out:
                sink.begin_close()
            self._closing = [*(each for each in self._closing if not each.has_ended), *left_out]
        LOG.info("exports read", extra={"fields": {"path": str(self._path)}})

    def reload_or_keep(self) -> None:
        """As `reload`, for a signal: what is wrong goes to the log."""
        try:
            self.reload()
        except InvalidExport as error:
            LOG.error("exports stay as they were", extra={"fields": {"reason": error.message}})

    def _trace_or_not(self) -> None:
        self.tracer.deliver = self._deliver if self._places.spans else None

    def follow(self, runtime: Runtime, collector: Collector, watching: Watching) -> None:
        """Watch containers from now on, as far as a sink wants what they do."""
        self._store = runtime.store
        self._begin_following = partial(
            Following, runtime, collector, watching, wish_of=self._wish_of, take=self._take, name="exports"
        )
        self._watch_what_is_wanted()
        runtime.store.subscribe(self._note)

    def _watch_what_is_wanted(self) -> None:
        if self._store is None or self._begin_following is None:
            return
        if self._following is None:
            if not any(place.choice.kinds for place in self._places.events):
                return
            self._following = self._begin_following()
        for record in self._store.list_containers():
            self._following.note(record.id, record)

    def _note(self, container_id: str, record: ContainerRecord | None) -> None:
        if self._following is not None:
            self._following.note(container_id, record)

    def before_start(self, record: ContainerRecord) -> None:
        """Take up a container of which nothing runs yet."""
        if self._following is not None:
            self._following.before_start(record)

    def tell_audit(self, line: str) -> None:
        """Take a line of the audit."""
        if self._audit is not None:
            self._audit.offer(Line(text=line, at=time.time()))

    @property
    def _all(self) -> tuple[Sink[Told] | Sink[Span] | Sink[Line], ...]:
        return (*self._places.sinks, *((self._audit,) if self._audit is not None else ()))

    def _wish_of(self, record: ContainerRecord) -> TraceWish | None:
        """Return what a container is watched for; None: nothing."""
        kinds: set[EventKind] = set()
        for place in self._places.events:
            if place.choice.is_about(tenant=record.tenant, container=record.name):
                kinds.update(place.choice.kinds)
        return TraceWish(kinds=tuple(sorted(kinds))) if kinds else None

    def _take(self, record: ContainerRecord, lines: Iterable[TraceLine]) -> None:
        """Take what a watched container did."""
        hidden = self._sight.of_export(record.tenant)
        for line in lines:
            match line:
                case Event():
                    self._offer(record, hidden.event(line), at=line.at)
                case Lost():
                    self._offer(record, line, at=time.time())
                case _:
                    pass

    def _offer(self, record: ContainerRecord, what: Event | Lost, *, at: float) -> None:
        told = Told(
            host=self._host, tenant=record.tenant, container=record.id, name=record.name, at=at, what=what
        )
        with self._lock:
            for place in self._places.events:
                kinds = place.choice.kinds
                is_wanted = what.kind in kinds if isinstance(what, Event) else bool(kinds)
                if is_wanted and place.choice.is_about(tenant=record.tenant, container=record.name):
                    place.sink.offer(told)

    def take_change(self, change: Change) -> None:
        """Take what has happened to a container."""
        what = self._sight.of_export(change.tenant).change(change)
        told = Told(
            host=self._host,
            tenant=change.tenant,
            container=change.container,
            name=change.name,
            at=change.at,
            what=what,
        )
        with self._lock:
            for place in self._places.events:
                choice = place.choice
                if choice.changes and choice.is_about(tenant=change.tenant, container=change.name):
                    place.sink.offer(told)

    def _deliver(self, span: Span) -> None:
        tenant, container = (str(span.attributes.get(key, "")) for key in WHOSE)
        with self._lock:
            places = self._places.spans
            wanted = [each for each in places if each.choice.is_about(tenant=tenant, container=container)]
            if not wanted:
                return
            hidden = self._sight.of_export(tenant or EVERY_TENANT)
            told = {
                key: hidden.text(value) if isinstance(value, str) else value
                for key, value in span.attributes.items()
            }
            for each in wanted:
                each.sink.offer(replace(span, attributes=told))

    def counts(self) -> list[SinkCounts]:
        """Tell what became of it all."""
        return [sink.counts for sink in self._all]

    def close(self) -> None:
        """Carry what is left, as far as that goes at once."""
        if self._following is not None:
            self._following.close()
        deadline = time.monotonic() + CLOSE_S
        sinks = (*self._all, *self._closing)
        for sink in sinks:
            sink.begin_close()
        for sink in sinks:
            sink.close(within_s=max(0.0, deadline - time.monotonic()))

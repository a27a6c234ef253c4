# SPDX-License-Identifier: Apache-2.0
"""What leaves this host without a reader who asks: events, changes and traces, each to the sinks that are meant.

    a change of a container, an alarm ──────────────┐
    events of containers, as sinks want them ───────┼─► redacted (`[role.export]`) ─► each sink's queue (`export/sink.py`)
    spans of operations, requests and arrivals ─────┘

Nothing here waits for a sink.  Nothing is watched, imported or started that is not configured.
"""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from insula.daemon.config_file import read_roots_file
from insula.daemon.following import Following
from insula.daemon.options import Options
from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.export.config import MAX_BYTES, Choice, Exports, Otlp, read_exports
from insula.export.lines import EventFile, json_of
from insula.export.post import Post
from insula.export.sink import CLOSE_S, Sink
from insula.export.syslog import Address, Facility, Line, Severity, Syslog
from insula.model.change import Change
from insula.model.errors import InvalidExport
from insula.model.export import SinkCounts, Told
from insula.model.monitor import Event, EventKind, Lost, TraceLine, TraceWish
from insula.model.record import ContainerRecord
from insula.model.span import WHOSE, Span, Tracer
from insula.monitor.collect import Collector
from insula.runtime.context import Runtime

OTLP_PER_S = 2_000
"""Log records for a collector: each costs 50 µs of the processor, a line of JSON 2."""


def begin(options: Options, *, sight: Sight) -> "Exporter":
    """Open what the daemon's words say.  Raises: InvalidExport, so that insulad does not start with less than is meant."""
    text = read_roots_file(options.exports, name="exports", max_bytes=MAX_BYTES, error=InvalidExport)
    return Exporter(read_exports(text), host=options.name, sight=sight, audit_to=options.syslog)


@dataclass(frozen=True, slots=True)
class _Sinks:
    """The open ones."""

    events: list[tuple[Choice, Sink[Told]]] = field(default_factory=list)
    spans: list[tuple[Choice, Sink[Span]]] = field(default_factory=list)

    @classmethod
    def open(cls, exports: Exports, *, host: str) -> "_Sinks":
        sinks = cls()
        for otlp in exports.otlp:
            sinks.add_otlp(otlp, host=host)
        for file in exports.file:
            carrier = EventFile(Path(file.path), max_bytes=file.max_bytes, kept=file.kept)
            sinks.events.append((file, Sink(sinks.name(f"file {file.path}"), carrier)))
        for syslog in exports.syslog:
            name = sinks.name(f"syslog {syslog.address}")
            sinks.events.append((syslog, _syslog(name, syslog.address, host=host)))
        return sinks

    def name(self, wished: str) -> str:
        """Return what a sink is called: another one to the same place has a number."""
        taken = {sink.name for _, sink in self.events} | {sink.name for _, sink in self.spans}
        others = (f"{wished} ({number})" for number in itertools.count(2))
        return next(each for each in itertools.chain((wished,), others) if each not in taken)

    def add_otlp(self, endpoint: Otlp, *, host: str) -> None:
        # Who configures none of it does not pay for the generated messages: 4 MiB, 20 ms (ADR 28).
        from insula.export import otlp

        try:
            logs, traces = Post(endpoint), Post(endpoint)
        except OSError as error:
            raise InvalidExport(
                f"cannot use the certificates for `{endpoint.endpoint}`: {error.strerror or error}"
            ) from error
        if endpoint.changes or endpoint.kinds:
            name = self.name(f"otlp {endpoint.endpoint} logs")
            self.events.append((endpoint, Sink(name, otlp.Logs(logs), max_per_s=OTLP_PER_S)))
        if endpoint.traces:
            name = self.name(f"otlp {endpoint.endpoint} traces")
            self.spans.append((endpoint, Sink(name, otlp.Traces(traces, host=host))))


def _syslog(name: str, address: str, *, host: str) -> Sink[Told]:
    carrier = Syslog(Address.parse(address), _line, host=host, facility=Facility.DAEMON, message_id="event")
    return Sink(name, carrier)


def _audit(address: str, *, host: str) -> Sink[Line]:
    carrier = Syslog[Line](
        Address.parse(address),
        lambda line: line,
        host=host,
        facility=Facility.AUTHPRIV,
        message_id="audit",
    )
    return Sink(f"audit {address}", carrier)


def _line(told: Told) -> Line:
    severity = Severity.WARNING if told.is_alarming else Severity.INFO
    return Line(text=json_of(told).decode(), at=told.at, severity=severity)


class Exporter:
    """Who gets what.  From any thread."""

    def __init__(self, exports: Exports, *, host: str, sight: Sight, audit_to: str = "") -> None:
        """audit_to: a syslog for the audit's lines; empty: none.

        Raises: InvalidExport for certificates that cannot be read; InvalidSpec for what is no address of a syslog.
        """
        self._host = host
        self._sight = sight
        self._sinks = _Sinks.open(exports, host=host)
        self._audit = _audit(audit_to, host=host) if audit_to else None
        self._following: Following | None = None

    def follow(self, runtime: Runtime, collector: Collector, watching: Watching) -> None:
        """Watch containers from now on, as far as a sink wants what they do."""
        if any(choice.kinds for choice, _ in self._sinks.events):
            self._following = Following(
                runtime, collector, watching, wish_of=self._wish_of, take=self._take, name="exports"
            )
            runtime.store.subscribe(self._following.note)

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
        events = (sink for _, sink in self._sinks.events)
        spans = (sink for _, sink in self._sinks.spans)
        return (*events, *spans, *((self._audit,) if self._audit is not None else ()))

    def _wish_of(self, record: ContainerRecord) -> TraceWish | None:
        """Return what a container is watched for; None: nothing."""
        kinds: set[EventKind] = set()
        for choice, _ in self._sinks.events:
            if choice.is_about(tenant=record.tenant, container=record.name):
                kinds.update(choice.kinds)
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
        for choice, sink in self._sinks.events:
            is_wanted = what.kind in choice.kinds if isinstance(what, Event) else bool(choice.kinds)
            if is_wanted and choice.is_about(tenant=record.tenant, container=record.name):
                sink.offer(told)

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
        for choice, sink in self._sinks.events:
            if choice.changes and choice.is_about(tenant=change.tenant, container=change.name):
                sink.offer(told)

    @property
    def tracer(self) -> Tracer:
        """Return where traces begin that are exported."""
        return Tracer(self._deliver if self._sinks.spans else None)

    def _deliver(self, span: Span) -> None:
        tenant, container = (str(span.attributes.get(key, "")) for key in WHOSE)
        for choice, sink in self._sinks.spans:
            if choice.is_about(tenant=tenant, container=container):
                sink.offer(span)

    def counts(self) -> list[SinkCounts]:
        """Tell what became of it all."""
        return [sink.counts for sink in self._all]

    def close(self) -> None:
        """Carry what is left, as far as that goes at once."""
        if self._following is not None:
            self._following.close()
        deadline = time.monotonic() + CLOSE_S
        for sink in self._all:
            sink.begin_close()
        for sink in self._all:
            sink.close(within_s=max(0.0, deadline - time.monotonic()))

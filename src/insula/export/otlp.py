# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry: events as log records and spans as traces, in protocol buffers, posted over HTTP (OTLP/HTTP).

Who and where is the resource (host, container, tenant); what happened is the record.  The only importer of the generated
messages; itself imported only where an endpoint is configured (ADR 28).
Sources: OTLP specification 1.x, "OTLP/HTTP"; semantic conventions "container", "host", "service", "process".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_INFO,
    SEVERITY_NUMBER_WARN,
    LogRecord,
    ResourceLogs,
    ScopeLogs,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from insula import __version__
from insula.export.post import Post
from insula.model.change import Alarm, Change, ProfileDrift
from insula.model.export import Told
from insula.model.monitor import Event, Lost, in_words
from insula.model.span import Span

_Value: TypeAlias = str | int | float | bool | tuple[str, ...]
_Values: TypeAlias = Mapping[str, _Value]

LOGS, TRACES = "/v1/logs", "/v1/traces"
_SCOPE = "insula"
_NANOSECONDS = 1_000_000_000
#: Field of an event → name of the attribute; what is empty is left out.
EVENT_ATTRIBUTES = {
    "call": "insula.call",
    "pid": "process.pid",
    "thread": "thread.id",
    "user": "insula.user",
    "command": "thread.name",
    "result": "insula.result",
    "error": "insula.error",
    "path": "insula.path",
    "other_path": "insula.other_path",
    "is_cut": "insula.is_cut",
    "address": "insula.address",
    "arguments": "process.command_args",
    "detail": "insula.detail",
    "port": "insula.port",
}
_ALWAYS = ("pid", "thread", "user", "result")


class Logs:
    """A `Carrier` of events."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def carry(self, items: Sequence[Told]) -> int:
        answer = self._post(LOGS, logs_of(items).SerializeToString())
        if answer is None:
            return len(items)
        try:
            return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)
        except DecodeError:  # it has taken them, whatever it says
            return 0

    def close(self) -> None:
        self._post.close()


class Traces:
    """A `Carrier` of spans."""

    def __init__(self, post: Post, *, host: str) -> None:
        self._post = post
        self._resource = _resource(host, {})

    def carry(self, items: Sequence[Span]) -> int:
        answer = self._post(TRACES, traces_of(items, resource=self._resource).SerializeToString())
        if answer is None:
            return len(items)
        try:
            return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
        except DecodeError:  # as above
            return 0

    def close(self) -> None:
        self._post.close()


def logs_of(items: Iterable[Told]) -> ExportLogsServiceRequest:
    """Return events as a request: those of a container together."""
    records: dict[tuple[str, str, str, str], list[LogRecord]] = {}
    for each in items:
        records.setdefault((each.host, each.tenant, each.container, each.name), []).append(_record(each))
    return ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=_resource(
                    host, {"container.id": container, "container.name": name, "insula.tenant": tenant}
                ),
                scope_logs=[ScopeLogs(scope=_scope(), log_records=found)],
            )
            for (host, tenant, container, name), found in records.items()
        ]
    )


def _record(told: Told) -> LogRecord:
    kind, body, attributes = _said(told.what)
    at = int(told.at * _NANOSECONDS)
    return LogRecord(
        time_unix_nano=at,
        observed_time_unix_nano=at,
        severity_number=SEVERITY_NUMBER_WARN if told.is_alarming else SEVERITY_NUMBER_INFO,
        severity_text="WARN" if told.is_alarming else "INFO",
        event_name=f"insula.{kind}",
        body=_value(body),
        attributes=_pairs({"insula.kind": kind, **attributes}),
    )


def _said(what: Event | Change | Lost) -> tuple[str, str, dict[str, _Value]]:
    """Return (kind, words, attributes)."""
    match what:
        case Event():
            found = {name: getattr(what, field) for field, name in EVENT_ATTRIBUTES.items()}
            always = {EVENT_ATTRIBUTES[field] for field in _ALWAYS}
            told = {
                name: value for name, value in found.items() if name in always or value not in ("", (), 0)
            }
            return what.kind.value, in_words(what), told
        case Change():
            return what.event, f"{what.event} {what.detail}".strip(), _of_change(what)
        case Lost():
            return "lost", f"{what.events} events were lost", {"insula.events": what.events}


def _of_change(change: Change) -> dict[str, _Value]:
    detail: dict[str, _Value] = {"insula.detail": change.detail} if change.detail else {}
    match change:
        case Alarm():
            return {**detail, "insula.rule": change.rule}
        case ProfileDrift():
            return {**detail, "insula.profile": change.profile}
        case _:
            return detail


def traces_of(spans: Iterable[Span], *, resource: Resource) -> ExportTraceServiceRequest:
    """Return spans as a request."""
    scope = ScopeSpans(scope=_scope(), spans=[_span(each) for each in spans])
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])])


def _span(span: Span) -> SpanMessage:
    is_asked = span.is_of_peer or not span.parent_id
    return SpanMessage(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=SpanMessage.SPAN_KIND_SERVER if is_asked else SpanMessage.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span.begun_ns,
        end_time_unix_nano=span.ended_ns,
        attributes=_pairs({**span.attributes, **({"error.type": span.error} if span.error else {})}),
        status=Status(code=Status.STATUS_CODE_ERROR, message=span.error) if span.error else Status(),
    )


def _resource(host: str, values: _Values) -> Resource:
    service = {"service.name": "insulad", "service.version": __version__, "host.name": host}
    return Resource(attributes=_pairs({**service, **values}))


def _scope() -> InstrumentationScope:
    return InstrumentationScope(name=_SCOPE, version=__version__)


def _pairs(values: _Values) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: _Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case tuple():
            return AnyValue(array_value=ArrayValue(values=[_value(each) for each in value]))

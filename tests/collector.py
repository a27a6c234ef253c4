# SPDX-License-Identifier: Apache-2.0
"""For tests: an OpenTelemetry collector, as far as OTLP/HTTP goes.  What comes is decoded by the official messages."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from insula.kernel.netlink import namespace_entered


@dataclass(frozen=True, kw_only=True)
class SeenSpan:
    name: str
    trace: str
    id: str
    parent: str
    begun: int
    ended: int
    kind: int
    is_error: bool
    attributes: dict[str, Any]
    host: str


@dataclass(frozen=True, kw_only=True)
class SeenLog:
    name: str
    body: str
    at: int
    severity: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What came, and how it answers."""

    address: str
    port: int = 0
    scheme: str = "http"
    status: int = 200
    answer: bytes = b""
    closes: bool = False
    """Whether it closes connections that it has answered on, without saying so."""
    spans: list[SeenSpan] = field(default_factory=list)
    logs: list[SeenLog] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.address}:{self.port}"

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            self.spans += list(_spans(ExportTraceServiceRequest.FromString(body)))
        elif path == "/v1/logs":
            self.logs += list(_logs(ExportLogsServiceRequest.FromString(body)))
        else:
            raise ValueError(path)

    def named(self, name: str) -> list[SeenSpan]:
        return [each for each in list(self.spans) if each.name == name]


@contextmanager
def collecting(
    address: str = "127.0.0.1", *, namespace: int | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Collector]:
    """Listen while the block runs.  namespace: the network to do that in."""
    found = Collector(address, scheme="https" if tls else "http")
    found.may_answer.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.headers.append(dict(self.headers))
            found.may_answer.wait(60)
            if found.status == 200:
                found.take(self.path, body)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.answer)))
            self.end_headers()
            self.wfile.write(found.answer)
            self.close_connection = found.closes

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, 0), Handler, bind_and_activate=False)
    server.daemon_threads = True
    if namespace is not None:
        server.socket.close()
        with namespace_entered(namespace):
            server.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.server_bind()
    server.server_activate()
    found.port = server.server_address[1]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.may_answer.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def _pairs(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _spans(request: ExportTraceServiceRequest) -> Iterator[SeenSpan]:
    for resource in request.resource_spans:
        host = _pairs(resource.resource.attributes)["host.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SeenSpan(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    begun=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    kind=span.kind,
                    is_error=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_pairs(span.attributes),
                    host=host,
                )


def _logs(request: ExportLogsServiceRequest) -> Iterator[SeenLog]:
    for resource in request.resource_logs:
        attributes = _pairs(resource.resource.attributes)
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield SeenLog(
                    name=record.event_name,
                    body=_value(record.body),
                    at=record.time_unix_nano,
                    severity=record.severity_text,
                    attributes=_pairs(record.attributes),
                    resource=attributes,
                )

# SPDX-License-Identifier: Apache-2.0
"""OTLP/HTTP at a real collector: fields, headers, TLS both ways, answers that refuse and that ask to wait."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from collector import Collector, collecting
from insula.export.config import Otlp
from insula.export.otlp import EVENT_ATTRIBUTES, Logs, Traces
from insula.export.post import Post
from insula.export.sink import Unavailable
from insula.model.change import Alarm, Change, ProfileDrift
from insula.model.export import Told
from insula.model.monitor import Event, EventKind, Lost
from insula.model.span import Span

EVENT = Event(
    at=2.5,
    container="c1",
    name="web",
    kind=EventKind.EXEC,
    call="execve",
    pid=7,
    thread=8,
    user=0,
    command="sh",
    path="/bin/sh",
    arguments=("sh", "-c", "naïve"),
)
SPAN = Span(
    name="migrate",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
    begun_ns=1_000_000_001,
    ended_ns=2_000_000_002,
    attributes={"a": "x", "b": 1, "c": 1.5, "d": True},
    error="name_taken",
)


def told(what: Event | Change | Lost, *, container: str = "c1") -> Told:
    return Told(host="alpha", tenant="alice", container=container, name="web", at=2.5, what=what)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


OPEN: list[Post] = []


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def post(collector: Collector, **fields: object) -> Post:
    OPEN.append(Post(Otlp(**{"endpoint": collector.endpoint, "timeout_s": 5.0} | fields)))  # type: ignore[arg-type]
    return OPEN[-1]


def test_an_event_is_a_log_record(collector: Collector) -> None:
    logs = Logs(post(collector, headers={"authorization": "Bearer x"}))
    assert logs.carry([told(EVENT), told(EVENT, container="c2")]) == 0
    first, second = collector.logs
    assert first.name == "insula.exec"
    assert first.body == "sh[7] execve sh -c naïve"
    assert (first.at, first.severity) == (2_500_000_000, "INFO")
    assert first.attributes == {
        "insula.kind": "exec",
        "insula.call": "execve",
        "process.pid": 7,
        "thread.id": 8,
        "insula.user": 0,
        "insula.result": 0,
        "thread.name": "sh",
        "insula.path": "/bin/sh",
        "process.command_args": ["sh", "-c", "naïve"],
    }
    whose = {"container.id": "c1", "container.name": "web", "insula.tenant": "alice", "host.name": "alpha"}
    assert first.resource.items() >= whose.items()
    assert second.resource["container.id"] == "c2"
    assert collector.headers[0]["authorization"] == "Bearer x"


def test_every_field_of_an_event_has_an_attribute() -> None:
    elsewhere = {"at", "container", "name", "kind"}
    assert set(Event.__struct_fields__) - elsewhere == set(EVENT_ATTRIBUTES)


def test_changes_alarms_and_losses(collector: Collector) -> None:
    fields = {"at": 1.0, "container": "c1", "name": "web", "tenant": "alice"}
    logs = Logs(post(collector))
    logs.carry(
        [
            told(Change(**fields, event="exited", detail="exit code 0")),  # type: ignore[arg-type]
            told(Alarm(**fields, event="alarm", detail="shell: sh", rule="shell", seen=EVENT)),  # type: ignore[arg-type]
            told(ProfileDrift(**fields, event="profile_drift", detail="p: sh", profile="p", seen=EVENT)),  # type: ignore[arg-type]
            told(Lost(events=3)),
        ]
    )
    assert [(each.name, each.body, each.severity) for each in collector.logs] == [
        ("insula.exited", "exited exit code 0", "INFO"),
        ("insula.alarm", "alarm shell: sh", "WARN"),
        ("insula.profile_drift", "profile_drift p: sh", "WARN"),
        ("insula.lost", "3 events were lost", "WARN"),
    ]
    assert collector.logs[1].attributes["insula.rule"] == "shell"
    assert collector.logs[2].attributes["insula.profile"] == "p"


def test_a_span(collector: Collector) -> None:
    traces = Traces(post(collector), host="alpha")
    assert traces.carry([SPAN]) == 0
    (seen,) = collector.spans
    assert (seen.trace, seen.id, seen.parent, seen.name) == (SPAN.trace_id, SPAN.span_id, "", "migrate")
    assert (seen.begun, seen.ended, seen.is_error, seen.host) == (1_000_000_001, 2_000_000_002, True, "alpha")
    assert seen.attributes == {**SPAN.attributes, "error.type": "name_taken"}


def test_a_span_of_a_phase_names_the_one_that_it_is_part_of(collector: Collector) -> None:
    part = replace(SPAN, span_id="ab" * 8, parent_id=SPAN.span_id, name="freeze")
    assert Traces(post(collector), host="alpha").carry([SPAN, part]) == 0
    assert [(each.id, each.parent) for each in collector.spans] == [
        (SPAN.span_id, ""),
        ("ab" * 8, SPAN.span_id),
    ]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_cannot_be_taken_now_is_tried_again(collector: Collector, status: int) -> None:
    collector.status = status
    with pytest.raises(Unavailable, match=str(status)):
        Traces(post(collector), host="alpha").carry([SPAN])


def test_an_answer_may_refuse_a_part(collector: Collector) -> None:
    part = ExportTracePartialSuccess(rejected_spans=1)
    collector.answer = ExportTraceServiceResponse(partial_success=part).SerializeToString()
    assert Traces(post(collector), host="alpha").carry([SPAN, SPAN]) == 1
    collector.answer = b"\xff nonsense"
    assert Traces(post(collector), host="alpha").carry([SPAN]) == 0


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_would_be_refused_again_is_not_tried_again(collector: Collector, status: int) -> None:
    collector.status = status
    assert Traces(post(collector), host="alpha").carry([SPAN]) == 1


def test_who_does_not_answer_is_given_up(collector: Collector) -> None:
    collector.may_answer.clear()
    with pytest.raises(Unavailable, match="timed out"):
        Traces(post(collector, timeout_s=0.2), host="alpha").carry([SPAN])


def test_who_is_not_there_is_unavailable() -> None:
    with collecting() as gone:
        pass
    with pytest.raises(Unavailable, match="refused"):
        Traces(post(gone), host="alpha").carry([SPAN])


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that has signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *form)
    )
    return path


def test_tls_with_certificates_of_both_sides(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with collecting(tls=context) as collector:
        here = post(collector, ca_file=str(certificate), certificate_file=str(certificate))
        assert Traces(here, host="alpha").carry([SPAN]) == 0
        assert collector.named("migrate")
        with pytest.raises(Unavailable):
            Traces(post(collector, ca_file=str(certificate)), host="alpha").carry([SPAN])
        with pytest.raises(Unavailable, match="certificate verify failed"):
            Traces(post(collector), host="alpha").carry([SPAN])


def test_certificates_that_are_not_there() -> None:
    with pytest.raises(OSError, match="No such file"):
        Post(Otlp(endpoint="https://127.0.0.1:1", ca_file="/none"))


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_anew(collector: Collector) -> None:
    traces = Traces(post(collector), host="alpha")
    traces.carry([SPAN])
    collector.closes = True
    traces.carry([SPAN])  # closed after the answer
    assert traces.carry([SPAN]) == 0
    assert len(collector.spans) == 3

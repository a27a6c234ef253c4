# SPDX-License-Identifier: Apache-2.0
"""Who gets what: by tenant and name, redacted, counted; and nothing where nothing is configured."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from collector import collecting
from hosted import wait_until
from insula.daemon.exporting import Exporter
from insula.daemon.pki import Pki
from insula.daemon.rights import PolicyFile
from insula.daemon.sight import Sight
from insula.model import span
from insula.model.change import Alarm, Change
from insula.model.errors import InvalidExport
from insula.model.monitor import Event, EventKind

POLICY = '[tenant.alice]\nhide_arguments = ["password=*"]\n'


@contextmanager
def exporting(folder: Path, text: str, **options: Any) -> Iterator[Exporter]:
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    listed = folder / "export.toml"
    listed.write_text(text)
    exporter = Exporter(listed, host="alpha", sight=Sight(PolicyFile(policy)), **options)
    yield exporter
    exporter.close()


def change(tenant: str, name: str = "web") -> Change:
    return Change(at=1.0, container=f"{tenant}-1", name=name, tenant=tenant, event="started")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_sink_gets_what_it_is_about(tmp_path: Path) -> None:
    text = "".join(
        f'[[file]]\npath = "{tmp_path}/{name}"\n{more}\n'
        for name, more in (
            ("all", ""),
            ("alice", 'tenants = ["ali*"]'),
            ("db", 'containers = ["db"]'),
            ("none", "changes = false"),
        )
    )
    with exporting(tmp_path, text) as exporter:
        for tenant, name in (("alice", "web"), ("bob", "db")):
            exporter.take_change(change(tenant, name))
    found = {path.name: [line["tenant"] for line in lines(path)] for path in tmp_path.glob("[!pe]*")}
    assert found == {"all": ["alice", "bob"], "alice": ["alice"], "db": ["bob"]}


def test_an_alarm_is_redacted(tmp_path: Path) -> None:
    seen = Event(
        at=1.0, container="c", name="web", kind=EventKind.EXEC, command="sh", arguments=("sh", "password=x")
    )
    with exporting(tmp_path, f'[[file]]\npath = "{tmp_path}/all"\n') as exporter:
        for tenant in ("alice", "bob"):
            fields = {"at": 1.0, "container": "c", "name": "web", "tenant": tenant, "event": "alarm"}
            exporter.take_change(Alarm(**fields, rule="r", seen=seen))  # type: ignore[arg-type]
    alice, bob = lines(tmp_path / "all")
    assert alice["detail"] == "r: sh[0] exec sh password=[hidden]"
    assert "password=x" not in json.dumps(alice)
    assert bob["seen"]["arguments"] == ["sh", "password=x"]


def test_traces_of_others_do_not_go_to_who_is_for_one_tenant(tmp_path: Path) -> None:
    with collecting() as collector:
        text = f'[[otlp]]\nendpoint = "{collector.endpoint}"\ntenants = ["alice"]\nchanges = false\n'
        with exporting(tmp_path, text) as exporter:
            for tenant in ("alice", "bob"):
                with exporter.tracer.root("migrate", attributes={span.TENANT: tenant}):
                    span.enter_phase("freeze")
        assert {each.attributes["insula.tenant"] for each in collector.spans} == {"alice"}
        assert {each.name for each in collector.spans} == {"migrate", "freeze"}


def test_ends_and_traces_are_redacted(tmp_path: Path) -> None:
    with collecting() as collector:
        text = f'[[otlp]]\nendpoint = "{collector.endpoint}"\nchanges = false\n[[file]]\npath = "{tmp_path}/all"\n'
        with exporting(tmp_path, text) as exporter:
            exporter.take_change(replace(change("alice"), event="exited", detail="exit code 1: `password=x`"))
            with exporter.tracer.root("migrate", attributes={span.TENANT: "alice"}):
                span.note({"insula.reason": "cannot carry `password=x`", "insula.rounds": 3})
        (told,) = collector.spans
    assert told.attributes["insula.reason"] == "cannot carry `password=[hidden]`"
    assert told.attributes["insula.rounds"] == 3
    assert [each["detail"] for each in lines(tmp_path / "all")] == ["exit code 1: `password=[hidden]`"]


def test_two_sinks_to_one_place_have_two_names(tmp_path: Path) -> None:
    with exporting(tmp_path, '[[syslog]]\naddress = "/none"\n' * 3) as exporter:
        assert [each.sink for each in exporter.counts()] == [
            "syslog /none",
            "syslog /none (2)",
            "syslog /none (3)",
        ]


def test_who_configures_nothing_pays_nothing(tmp_path: Path) -> None:
    with exporting(tmp_path, "") as exporter:
        with exporter.tracer.root("migrate") as root:
            assert root is None
        exporter.take_change(change("alice"))
        exporter.tell_audit("line")
        assert exporter.counts() == []


def test_generated_messages_are_loaded_by_otlp_only() -> None:
    code = "import sys, insula.daemon.wiring; print([m for m in sys.modules if m.startswith(('opentelemetry', 'google'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_certificates_that_are_not_there_are_told_at_the_start(tmp_path: Path) -> None:
    text = '[[otlp]]\nendpoint = "https://127.0.0.1:1"\nca_file = "/none"\n'
    with pytest.raises(InvalidExport, match="cannot use the certificates"), exporting(tmp_path, text):
        pass


def test_the_audit_goes_to_syslog(tmp_path: Path) -> None:
    where = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(where))
        listener.settimeout(10)
        with exporting(tmp_path, "", audit_to=str(where)) as exporter:
            exporter.tell_audit('{"who": "alice"}')
            said = listener.recv(4096)
    assert said.startswith(b"<86>1 ")
    assert said.endswith(b' alpha insulad - audit - {"who": "alice"}')


def reloaded(exporter: Exporter, folder: Path, text: str) -> None:
    (folder / "export.toml").write_text(text)
    exporter.reload()


def file(folder: Path, name: str, more: str = "") -> str:
    return f'[[file]]\npath = "{folder}/{name}"\n{more}\n'


def tenants(path: Path) -> list[str]:
    return [each["tenant"] for each in lines(path)] if path.exists() else []


def test_what_is_listed_anew_gets_what_happens_then_and_what_is_not_gets_its_queue_and_ends(
    tmp_path: Path,
) -> None:
    with exporting(tmp_path, file(tmp_path, "old") + file(tmp_path, "stays")) as exporter:
        exporter.take_change(change("alice"))
        reloaded(exporter, tmp_path, file(tmp_path, "new") + file(tmp_path, "stays", 'tenants = ["bob"]'))
        wait_until(lambda: tenants(tmp_path / "old") == ["alice"], what="the queue was sent")
        for tenant in ("alice", "bob"):
            exporter.take_change(change(tenant))
        wait_until(lambda: f"export file {tmp_path}/old" not in threads(), what="its sink has ended")
        assert [each.sink for each in exporter.counts()] == [f"file {tmp_path}/{n}" for n in ("new", "stays")]
    assert tenants(tmp_path / "old") == ["alice"]
    assert tenants(tmp_path / "new") == ["alice", "bob"]
    assert tenants(tmp_path / "stays") == ["alice", "bob"]


def threads() -> set[str]:
    return {each.name for each in threading.enumerate()}


def test_who_stays_listed_keeps_its_counts_and_who_goes_another_way_begins_anew(tmp_path: Path) -> None:
    def sent(exporter: Exporter) -> list[tuple[str, int]]:
        return [(each.sink.rpartition("/")[2], each.sent) for each in exporter.counts()]

    with exporting(tmp_path, file(tmp_path, "a") + file(tmp_path, "b")) as exporter:
        exporter.take_change(change("alice"))
        wait_until(lambda: sent(exporter) == [("a", 1), ("b", 1)], what="both have got it")
        reloaded(exporter, tmp_path, file(tmp_path, "b", "kept = 2") + file(tmp_path, "a", "changes = false"))
        assert sent(exporter) == [("b", 0), ("a", 1)]
        exporter.take_change(change("bob"))
    assert tenants(tmp_path / "b") == ["alice", "bob"]


def test_a_wrong_file_is_refused_and_what_counted_before_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = (
        "[[file]]\npath = 1\n",
        file(tmp_path, "new") + '[[otlp]]\nendpoint = "https://127.0.0.1:1"\nca_file = "/none"\n',
    )
    with exporting(tmp_path, file(tmp_path, "a")) as exporter:
        for text in wrong:
            with pytest.raises(InvalidExport):
                reloaded(exporter, tmp_path, text)
            exporter.reload_or_keep()
        exporter.take_change(change("alice"))
        assert [each.sink for each in exporter.counts()] == [f"file {tmp_path}/a"]
    assert [each.message for each in caplog.records] == ["exports stay as they were"] * 2
    assert tenants(tmp_path / "a") == ["alice"]
    assert not (tmp_path / "new").exists()


def test_traces_begin_and_end_with_a_collector_in_the_list(tmp_path: Path) -> None:
    with collecting() as collector, exporting(tmp_path, "") as exporter:
        tracer = exporter.tracer
        reloaded(exporter, tmp_path, f'[[otlp]]\nendpoint = "{collector.endpoint}"\n')
        with tracer.root("migrate", attributes={span.TENANT: "alice"}):
            pass
        wait_until(lambda: [each.name for each in collector.spans] == ["migrate"], what="the span has come")
        reloaded(exporter, tmp_path, "")
        with tracer.root("migrate") as root:
            assert root is None


def test_new_certificates_in_the_old_file_are_read(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text(Pki(tmp_path / "pki", name="alpha").certificate_pem)
    text = f'[[otlp]]\nendpoint = "https://127.0.0.1:1"\nca_file = "{authority}"\n'
    with exporting(tmp_path, text) as exporter:
        exporter.reload()
        authority.write_text("nonsense")
        with pytest.raises(InvalidExport, match="cannot use the certificates"):
            exporter.reload()

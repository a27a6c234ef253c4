# SPDX-License-Identifier: Apache-2.0
"""The audit log: chained, rotated, verified, refused without room."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.errors import AuditUnavailable, Denied
from insula.model.grant import Action, Principal
from insula.tenant.audit import Audit, Entry
from insula.tenant.audit_chain import entries, files_of, last_entries, verify


def entry(path: str = "/v1/containers", *, tenant: str = "alice", result: str = "ok") -> Entry:
    who = Principal(name=tenant, uid=1000)
    return Entry(
        principal=who,
        action=Action.CREATE,
        method="POST",
        path=path,
        result=result,
        tenant=tenant,
        source="unix",
    )


def written(folder: Path, count: int = 10, **options: int) -> Path:
    path = folder / "audit.log"
    audit = Audit(path, **options)
    for number in range(count):
        audit.record(entry(f"/v1/containers/{number}"))
    audit.close()
    return path


def test_a_line_says_who_what_and_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    audit.record(entry(result="quota_exceeded"))
    audit.close()
    line = json.loads(path.read_text())
    assert (line["who"], line["uid"], line["from"], line["n"]) == ("alice", 1000, "unix", 1)
    assert (line["action"], line["decision"], line["result"]) == ("create", "refused", "quota_exceeded")


def test_a_line_names_the_process_if_it_is_on_this_host(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    audit.record(replace(entry(), pid=17, began=99))
    audit.record(entry())
    audit.close()
    here, there = map(json.loads, path.read_text().splitlines())
    assert (here["pid"], here["pid_began"]) == (17, 99)
    assert "pid" not in there
    assert "pid_began" not in there


def refusals(kind: type[Denied]) -> list[str]:
    return [kind.code, *(code for each in kind.__subclasses__() for code in refusals(each))]


@pytest.mark.parametrize("code", [*refusals(Denied), "quota_exceeded", "too_many_requests"])
def test_each_refusal_is_written_as_one(code: str) -> None:
    assert not entry(result=code).is_allowed


@pytest.mark.parametrize("code", ["ok", "container_not_found", "internal", "gone"])
def test_what_failed_for_another_reason_was_allowed(code: str) -> None:
    assert entry(result=code).is_allowed


def test_what_is_as_it_was_written_is_right(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert verify(path) == (10, 1, "")
    audit = Audit(path)  # another insulad goes on
    audit.record(entry())
    audit.close()
    assert verify(path) == (11, 1, "")


@settings(deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    path = written(tmp_path_factory.mktemp("log"), 5)
    data = bytearray(path.read_bytes())
    if data[place % len(data)] == value:
        return
    data[place % len(data)] = value
    path.write_bytes(data)
    assert verify(path).problem


@pytest.mark.parametrize("kept", range(10))
def test_lines_cut_off_are_found(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    assert verify(path).problem == f"audit.log: {10 - kept} lines are missing at the end"


@pytest.mark.parametrize("number", range(1, 9))
def test_a_line_taken_out_is_found(tmp_path: Path, number: int) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
    assert f"line {number + 1}" in verify(path).problem


def test_files_are_rotated_and_the_chain_goes_through_them(tmp_path: Path) -> None:
    path = written(tmp_path, 300, max_bytes=4000)
    found = verify(path)
    assert found.problem == ""
    assert found.files == len(files_of(path)) == 10
    assert found.lines < 300  # the oldest went
    middle = files_of(path)[4]
    middle.write_bytes(middle.read_bytes().replace(b"alice", b"mallo", 1))
    assert middle.name in verify(path).problem


def test_a_tenant_reads_its_own_part(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    for tenant in ("alice", "bob", "alice"):
        audit.record(entry(tenant=tenant))
    audit.close()
    assert len(list(entries(path, tenant="alice", since=0.0))) == 2
    assert len(list(entries(path, tenant=None, since=0.0))) == 3
    assert not list(entries(path, tenant=None, since=4e9))


@pytest.mark.parametrize(("count", "numbers"), [(0, []), (1, [10]), (3, [8, 9, 10]), (99, [*range(1, 11)])])
def test_the_last_lines_are_the_last(tmp_path: Path, count: int, numbers: list[int]) -> None:
    found = last_entries(written(tmp_path), tenant="alice", since=0.0, count=count)
    assert [json.loads(line)["n"] for line in found] == numbers


def test_each_line_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    audit = Audit(tmp_path / "audit.log", tell=told.append)
    audit.record(entry())
    audit.close()
    assert told == (tmp_path / "audit.log").read_text().splitlines()


def test_when_the_disk_is_full_what_is_under_way_is_written_and_no_more_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    write, reserve = os.write, path.with_name("audit.reserve")

    def full(*_: object) -> None:
        raise OSError(28, "no space")

    def until_room(descriptor: int, data: bytes) -> int:
        if reserve.stat().st_size:
            full()
        return write(descriptor, data)

    audit.require_room()
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "write", until_room)
    audit.record(entry())  # into what was reserved
    with pytest.raises(AuditUnavailable):
        audit.require_room()
    monkeypatch.undo()
    audit.require_room()
    audit.close()
    assert verify(path) == (1, 1, "")

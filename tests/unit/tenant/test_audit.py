# SPDX-License-Identifier: Apache-2.0
"""The audit log: chained, rotated, verified, refused without room."""

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hosted import wait_until
from insula.model.errors import AuditUnavailable, Denied
from insula.model.grant import Action, Principal
from insula.tenant.audit import TORN, Audit
from insula.tenant.audit_chain import Verdict
from insula.tenant.audit_chain import verify as verify_log
from insula.tenant.audit_entry import Entry
from insula.tenant.audit_files import BLOCK, KEPT_FILES, files_of, opened
from insula.tenant.audit_reading import Wanted, found_backwards


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


def verify(path: Path) -> Verdict:
    with opened(path) as log:
        return verify_log(log)


def found(path: Path, *, tenant: str | None, since: float = 0.0) -> list[bytes]:
    """All lines that a reader wants, the newest first."""
    with opened(path) as log:
        return [line for some in found_backwards(log, Wanted(tenant=tenant, since=since)) for line in some]


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
    assert len(found(path, tenant="alice")) == 2
    assert len(found(path, tenant=None)) == 3
    assert not found(path, tenant=None, since=4e9)


def test_lines_are_found_from_the_end_on_through_blocks_and_files(tmp_path: Path) -> None:
    path = written(tmp_path, 1500, max_bytes=2 * BLOCK)
    assert [json.loads(line)["n"] for line in found(path, tenant="alice")] == [*range(1500, 0, -1)]
    assert not found(path, tenant="bob")


def test_who_wants_the_last_minute_does_not_read_the_day(tmp_path: Path) -> None:
    path = written(tmp_path, 1500, max_bytes=2 * BLOCK)
    with opened(path) as log:
        newest = log.parts[-1]
        since = json.loads(os.pread(newest.descriptor, newest.size, 0).splitlines()[-1])["at"]
        assert len(list(found_backwards(log, Wanted(tenant=None, since=since + 0.001)))) <= 1
    for file in files_of(path)[:-1]:
        os.utime(file, (1.0, 1.0))
    with opened(path) as log:
        read = list(found_backwards(log, Wanted(tenant="bob", since=2.0)))
    assert len(read) == 2


def test_who_is_not_to_know_how_much_others_ask_gets_no_numbers(tmp_path: Path) -> None:
    path = written(tmp_path)
    with opened(path) as log:
        (lines,) = found_backwards(log, Wanted(tenant="alice", chained=False))
        (chained,) = found_backwards(log, Wanted(tenant="alice"))
    whole = [json.loads(line) for line in chained]
    assert [json.loads(line) for line in lines] == [
        {key: value for key, value in each.items() if key not in ("n", "prev")} for each in whole
    ]


@given(words=st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_a_tenants_name_in_a_path_is_no_line_of_the_tenant(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.log"
    audit = Audit(path)
    for word in words:
        audit.record(entry(f'"tenant": "bob"{word}', tenant="alice"))
    audit.close()
    assert not found(path, tenant="bob")


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


def test_what_is_counted_has_its_line_also_where_there_may_be_no_more_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    audit = Audit(tmp_path / "audit.log")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    audit.count(entry(result="too_many_requests"))
    assert len(found(audit.path, tenant="alice")) == 1
    monkeypatch.undo()
    audit.count(entry(result="too_many_requests"))
    wait_until(lambda: len(found(audit.path, tenant="alice")) == 2, what="its line a second later")
    audit.close()


def test_who_comes_after_the_end_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    audit = Audit(path)
    audit.close()
    with open(tmp_path / "other", "w+b") as other, pytest.raises(OSError, match="descriptor"):
        audit.record(entry())
        assert other.read() == b""
    assert verify(path) == (1, 1, "")


# Crashes


def killed_at(path: Path, call: str, *, after: int = 0) -> None:
    """Have a process write lines, and end it by SIGKILL when it calls something of `os` for the so-manieth time."""
    child = os.fork()
    if child == 0:
        audit = Audit(path, max_bytes=4000)
        real, left = getattr(os, call), [after]

        def deadly(*args: object) -> object:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args)

        setattr(os, call, deadly)
        for _ in range(2000):
            audit.record(entry())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("call", ["write", "pwrite", "replace", "open", "close"])
@pytest.mark.parametrize("after", [0, 1, 4, 25])
def test_after_a_kill_the_log_goes_on(tmp_path: Path, call: str, after: int) -> None:
    path = tmp_path / "audit.log"
    killed_at(path, call, after=after)
    Audit(path).close()
    assert verify(path).problem == ""
    audit = Audit(path, max_bytes=4000)
    for _ in range(150):
        audit.record(entry())
    audit.close()
    assert verify(path).problem == ""


def test_a_torn_line_is_cut_and_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path)
    with open(path, "ab") as file:
        file.write(b'{"n": 11, "at": 17')
    Audit(path).close()
    assert verify(path) == (11, 1, "")
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["n"], last["who"], last["result"]) == (11, "insulad", TORN)
    assert "18 bytes" in last["note"]


def test_a_line_that_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    audit.record(entry())
    write = os.write

    def broken(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", failing)
        return write(descriptor, bytes(data)[:20])

    def failing(*_: object) -> int:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="input/output"):
        audit.record(entry())
    monkeypatch.undo()
    audit.record(entry())
    audit.close()
    assert verify(path) == (2, 1, "")


# What is missing


def test_a_log_without_its_head_is_a_problem_also_later(tmp_path: Path) -> None:
    path = written(tmp_path)
    for damage in (b"garbage", None):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
        head = path.with_name("audit.head")
        head.unlink() if damage is None else head.write_bytes(damage)
        assert "audit.head" in verify(path).problem
        Audit(path).close()
        assert "without its head" in verify(path).problem


def test_lines_cut_off_while_insulad_was_down_are_found_later(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    audit = Audit(path)
    audit.record(entry())
    audit.close()
    assert verify(path).problem == "audit.log, line 6: number 11 follows 5"


def test_lines_cut_off_at_the_beginning_are_found(tmp_path: Path) -> None:
    path = written(tmp_path, 20)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[10:]))
    assert verify(path).problem == "audit.log, line 1: 10 lines are missing before it"


@pytest.mark.parametrize("count", [30, 300])
def test_an_oldest_file_that_is_gone_is_noticed(tmp_path: Path, count: int) -> None:
    path = written(tmp_path, count, max_bytes=4000)
    assert len(files_of(path)) == (KEPT_FILES if count == 300 else 3)
    assert verify(path).problem == ""
    files_of(path)[0].unlink()
    assert "lines are missing before it" in verify(path).problem
    Audit(path).close()
    assert "lines are missing before it" in verify(path).problem


def test_a_log_that_is_gone_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.unlink()
    assert verify(path).problem == "audit.log: 10 lines are missing at the end"
    audit = Audit(path)
    audit.record(entry())
    audit.close()
    assert verify(path).problem == "audit.log, line 1: 10 lines are missing before it"

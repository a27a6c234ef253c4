# SPDX-License-Identifier: Apache-2.0
"""What of arguments and paths two tenants, an admin and a file of exports are told, by one policy."""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hosted
from accounts import AccountsHost
from hosted import Person, wait_until
from told import lines_of, listening
from waiting import DEADLINE_S

POLICY = """
[default]
hide_arguments = ["token=*"]
[tenant.alice]
hide_arguments = ["password=*", "--key *"]
hide_paths = ["/srv"]
[role.admin]
hide_arguments = []
hide_paths = ["/opt"]
"""
RULE = '[[rule]]\nname = "seen"\nkinds = ["file"]\npaths = ["/srv/*"]\nquiet_s = 0\n'
WORDS = ("cat", "--", "password=a", "token=b", "--key", "c", "/srv/d", "/opt/e")
#: Reader → arguments and paths that it is told when WORDS are executed in a container of alice's, and in one of bob's.
ALICE = ("cat -- password=[hidden] token=b --key [hidden] [hidden] /opt/e", {"/srv/[hidden]", "/opt/e"})
BOB = ("cat -- password=a token=[hidden] --key c /srv/d /opt/e", {"/srv/d", "/opt/e"})
ROOT = ("cat -- password=a token=b --key c /srv/d [hidden]", {"/srv/d", "/opt/[hidden]"})


@pytest.fixture(scope="module")
def module_host(program: Path, image: bytes) -> Iterator[hosted.Host]:
    with hosted.host(program, image, kind=AccountsHost) as made:
        assert isinstance(made, AccountsHost)
        made.policy.write_text(POLICY)
        events = made.folder / "events.jsonl"
        (made.folder / "export.toml").write_text(f'[[file]]\npath = "{events}"\nkinds = ["exec", "file"]\n')
        made.kill(signal.SIGTERM)
        made.start()
        yield made


@pytest.fixture
def here(host: hosted.Host) -> Iterator[AccountsHost]:
    assert isinstance(host, AccountsHost)
    for person in (host.alice, host.bob):
        person("run", "-d", "--name", "web", "box", "sleep", "1000")
    yield host
    host.policy.write_text(POLICY)
    host.root("policy", "reload")


class Trace:
    """What a reader is told of WORDS."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def read(self, *, files: int = 2) -> tuple[str, set[str]]:
        arguments, paths = "", set[str]()
        while not arguments or len(paths) < files:
            line = json.loads(self._answer.readline())
            if line.get("kind") == "exec" and line["arguments"][0] == "cat":
                arguments = " ".join(line["arguments"])
            elif line.get("kind") == "file" and line.get("path", "").startswith(("/srv/", "/opt/")):
                paths.add(line["path"])
        return arguments, paths


@contextmanager
def tracing(person: Person, query: str = "") -> Iterator[Trace]:
    with person.asking("GET", f"/v1/containers/web/trace?kinds=exec,file{query}") as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert json.loads(answer.readline())["type"] == "began"
        yield Trace(answer)
        answer.close()


def test_each_reader_is_told_what_the_policy_says(here: AccountsHost) -> None:
    for owner, told in ((here.alice, ALICE), (here.bob, BOB)):
        with tracing(owner) as own, tracing(here.root, f"&tenant={owner.name}") as roots:
            owner.give("exec", "web", *WORDS)
            assert own.read() == told
            assert roots.read() == ROOT


def test_a_filter_sees_what_is_told(here: AccountsHost) -> None:
    with tracing(here.alice, "&paths=/srv/d&paths=/opt/e") as trace:
        here.alice.give("exec", "web", "cat", "/srv/d", "/opt/e")
        here.alice.give("exec", "web", "sh", "-c", "cat /opt/e")
        paths = [json.loads(trace._answer.readline())["path"] for _ in range(2)]
    assert paths == ["/opt/e", "/opt/e"]


def test_a_changed_policy_counts_for_an_open_trace(here: AccountsHost) -> None:
    with tracing(here.alice) as trace:
        here.alice.give("exec", "web", *WORDS)
        assert trace.read() == ALICE
        here.policy.write_text("")
        here.root("policy", "reload")
        here.alice.give("exec", "web", *WORDS)
        assert trace.read() == (" ".join(WORDS), {"/srv/d", "/opt/e"})


def test_an_alarm_is_told_to_each_as_it_may_be(here: AccountsHost) -> None:
    file = here.folder / "rules.d" / "test.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(RULE)
    here.root("rule", "reload")
    try:
        with listening(here.alice) as alices, listening(here.bob) as bobs:
            for person in (here.alice, here.bob):
                person.give("exec", "web", "cat", "/srv/d")
            ((_, _, alice_told),) = alices.read(1)
            ((_, _, bob_told),) = bobs.read(1)
        wait_until(lambda: len(alarms_logged(here)) == 2, what="both are logged")
    finally:
        file.unlink()
        here.root("rule", "reload")
    assert alice_told.endswith("openat /srv/[hidden]")
    assert bob_told.endswith("openat /srv/d")
    assert alarms_logged(here) == ['/srv/[hidden]"', '/srv/d"']


def alarms_logged(here: AccountsHost) -> list[str]:
    """Return the last word of each."""
    whole, _, _ = here.log().rpartition("\n")
    return [line.rpartition(" ")[2] for line in whole.splitlines() if " alarm " in line]


def test_what_is_exported_is_redacted_too(here: AccountsHost) -> None:
    for person in (here.alice, here.bob):
        person.give("exec", "web", *WORDS)

    def lines() -> list[dict[str, Any]]:
        return lines_of(here.folder / "events.jsonl")

    ids = {person.name: person.look("web")["id"] for person in (here.alice, here.bob)}

    def told(tenant: str) -> tuple[set[str], set[str]]:
        own = [line for line in lines() if line["container"] == ids[tenant]]
        commands = {" ".join(each["arguments"]) for each in own if each.get("kind") == "exec"}
        paths = {each.get("path", "") for each in own if each.get("kind") == "file"}
        return (
            {each for each in commands if each.startswith("cat -- password")},
            {each for each in paths if each.startswith(("/srv/", "/opt/"))},
        )

    wait_until(lambda: len(told("bob")[1]) == 2, what="exported")
    assert told("alice") == ({ALICE[0]}, ALICE[1])
    assert told("bob") == ({BOB[0]}, BOB[1])
    changes = [
        line["event"] for line in lines() if line["type"] == "change" and line["container"] == ids["bob"]
    ]
    assert {"created", "started"} <= set(changes)


def test_a_profile_is_told_as_far_as_it_may_be(here: AccountsHost) -> None:
    here.alice("profile", "record", "web")
    here.alice.give("exec", "web", "sh", "-c", "mkdir -p /srv/s; echo x > /srv/s/file; echo x > /tmp/file")
    here.alice.give("exec", "web", "sh", "-c", "cp /bin/busybox /srv/s/true; /srv/s/true")
    here.alice("profile", "stop", "web", "mine")
    shown = here.alice.ask("GET", "/v1/profiles/mine")[1]
    assert {"/srv/[hidden]", "/tmp"} <= set(shown["written"])
    assert "/srv/s" not in shown["written"]
    assert "/srv/[hidden]" in shown["programs"]
    assert "/srv/s/true" not in shown["programs"]
    seen = here.root.ask("GET", "/v1/profiles/mine?tenant=alice")[1]
    assert "/srv/s" in seen["written"]
    body = json.dumps({**shown, "name": "again"}).encode()
    status, answer = here.alice.ask("PUT", "/v1/profiles/again", body=body)
    assert (status, answer["error"]["code"]) == (400, "invalid_spec")
    here.alice("profile", "rm", "mine")


def test_the_processes_are_told_as_far_as_they_may_be(here: AccountsHost) -> None:
    words = ("sh", "-c", "sleep 1000; true", "password=two words", "--key", "c")
    with here.alice.begin("exec", "web", *words) as running:

        def commands(person: Person, query: str = "") -> list[str]:
            return [each["command"] for each in person.ask("GET", f"/v1/containers/web/top{query}")[1]]

        wait_until(lambda: any("true" in each for each in commands(here.alice)), what="it runs")
        assert "sh -c sleep 1000; true password=[hidden] --key [hidden]" in commands(here.alice)
        assert " ".join(words) in commands(here.root, "?tenant=alice")
        here.alice("kill", "web")
        running.communicate(timeout=DEADLINE_S)


def test_what_is_known_of_a_container_is_told_as_far_as_it_may_be(here: AccountsHost) -> None:
    words = ("sh", "-c", "sleep 1000; true", "password=x", "--key", "c")
    here.alice("run", "-d", "--name", "held", "-e", "password=y", "-v", "/srv/v", "box", *words)
    here.alice("exec", "held", "sh", "-c", "mkdir /srv/w; echo x > /srv/w/file; echo x > /top")
    told, whole = "sh -c sleep 1000; true password=[hidden] --key [hidden]", " ".join(words)
    for person, query, command in ((here.alice, "", told), (here.root, "?tenant=alice", whole)):
        record = person.ask("GET", f"/v1/containers/held{query}")[1]
        listed = next(
            each for each in person.ask("GET", f"/v1/containers{query}")[1] if each["name"] == "held"
        )
        for found in (record, listed):
            assert " ".join(found["spec"]["command"]) == command
        changed = {each["path"] for each in person.ask("GET", f"/v1/containers/held/diff{query}")[1]}
        if person is here.alice:
            assert record["spec"]["environment"] == ["password=[hidden]"]
            assert [each["target"] for each in record["spec"]["mounts"]] == ["/srv/[hidden]"]
            assert {"/srv/[hidden]", "/top"} <= changed
            assert not {"/srv/w", "/srv/w/file"} & changed
        else:
            assert record["spec"]["environment"] == ["password=y"]
            assert {"/srv/w/file", "/top"} <= changed
    assert f'"{told}"' in here.alice("ps", "--no-trunc")


def test_errors_are_told_as_far_as_they_may_be(here: AccountsHost) -> None:
    log_before = len(here.log())
    here.alice("create", "--name", "bad", "box", "/srv/tool")
    for words in (("start", "bad"), ("exec", "web", "/srv/tool")):
        assert "`/srv/[hidden]`" in here.alice.give(*words).err, words
        assert "`/srv/tool`" in here.root.give("--tenant", "alice", *words).err, words
    here.alice("run", "--rm", "-v", "tools:/srv", "box", "cp", "/bin/busybox", "/srv/sleep")
    here.alice(
        "create",
        "--name",
        "ends",
        "--restart",
        "on-failure:1",
        "-v",
        "tools:/srv",
        "box",
        "/srv/sleep",
        "1000",
    )
    here.alice("start", "ends")
    here.alice("exec", "ends", "rm", "/srv/sleep")
    here.alice("kill", "ends")
    wait_until(lambda: "a restart failed" in here.log()[log_before:], what="it is restarted in vain")
    assert "`/srv/[hidden]`" in here.alice.wait_for("ends", status="exited", restart_count=1)["error"]
    for told in (here.log()[log_before:], (here.folder / "events.jsonl").read_text()):
        assert "/srv/tool" not in told
        assert "/srv/sleep" not in told


def test_where_the_host_exports_to_is_its_admins_business(here: AccountsHost) -> None:
    def metrics(person: Person) -> bytes:
        with person.asking("GET", "/metrics") as connection:
            return b"".join(iter(lambda: connection.recv(65536), b""))

    sent = f'insula_export_sent_total{{sink="file {here.folder}/events.jsonl"}}'.encode()
    wait_until(lambda: sent in metrics(here.root), what="told")
    assert b"insula_export" not in metrics(here.alice)

# SPDX-License-Identifier: Apache-2.0
"""A container, or an insulad, that stalls holds up nobody else.  Orders are compared, never times."""

import contextlib
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from insula.boot import protocol
from insula.boot.protocol import ProgramPlan, StartPlan
from spawned import DEADLINE_S, Spawned, Started, wait_until


class Requests:
    """Requests whose answers are not waited for one by one."""

    def __init__(self, host: Spawned) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(DEADLINE_S)
        self.connection.connect(str(host.run / "spawner.sock"))
        self.answers: dict[str, dict[str, Any]] = {}
        """In the order in which they came."""

    def send(self, name: str, verb: str, **body: object) -> None:
        protocol.send(self.connection, {"id": name, "verb": verb, "body": body})

    def wait_for(self, *names: str) -> list[str]:
        """Wait for answers.  Returns: who was answered until then, in order."""
        while not set(names) <= set(self.answers):
            fields, _ = protocol.receive(self.connection)
            assert fields, "the spawner has hung up"
            if "id" in fields:
                self.answers[fields["id"]] = fields
        return list(self.answers)


@pytest.fixture
def requests(host: Spawned) -> Iterator[Requests]:
    made = Requests(host)
    with made.connection:
        yield made


def begin(host: Spawned, requests: Requests, name: str, plan: StartPlan) -> None:
    host.started.append(Started(plan, 0))
    requests.send(name, "start", plan=protocol.encode(plan))


def begin_exec(requests: Requests, name: str, container: Started, *argv: str) -> None:
    program = ProgramPlan(argv=argv, environment=())
    requests.send(
        name, "execute", key=container.key, exec_key=uuid.uuid4().hex, program=protocol.encode(program)
    )


@contextlib.contextmanager
def frozen(host: Spawned, container: Started) -> Iterator[None]:
    """Whoever is born into it stands at once: what a hostile root inside does by SIGSTOP, but at every try."""
    host.group(container).freeze()
    try:
        yield
    finally:
        host.group(container).thaw()


def test_an_exec_that_stalls_holds_no_other_container_up(host: Spawned, requests: Requests) -> None:
    hostile, other = host.start("/bin/sleep", "1000"), host.start("/bin/sleep", "1000")
    with frozen(host, hostile):
        begin_exec(requests, "stalls", hostile, "/bin/true")
        begin(host, requests, "starts", host.plan("/bin/sleep", "1000"))
        begin_exec(requests, "runs", other, "/bin/true")
        requests.send("forgets", "forget", key="no-such-key")
        order = requests.wait_for("stalls", "starts", "runs", "forgets")
    assert order[-1] == "stalls"
    assert requests.answers["stalls"]["error"]["step"] == "wait"
    assert all("ok" in requests.answers[name] for name in order[:-1]), requests.answers


def test_a_start_that_stalls_holds_no_other_container_up(host: Spawned, requests: Requests) -> None:
    stalling = host.plan("/bin/sleep", "1000")
    group = host.group(Started(stalling, 0))
    group.create()
    group.freeze()
    begin(host, requests, "stalls", stalling)
    begin(host, requests, "starts", host.plan("/bin/sleep", "1000"))
    assert requests.wait_for("starts") == ["starts"]
    assert "ok" in requests.answers["starts"]
    group.thaw()
    requests.wait_for("stalls")
    assert "ok" in requests.answers["stalls"]


def test_a_cgroup_that_does_not_empty_holds_nobody_up(host: Spawned, requests: Requests) -> None:
    container = host.start("/bin/sleep", "1000")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            host.group(container).attach(stranger.pid)
            host.end(container)
            requests.send("forgets", "forget", key=container.key)
            begin(host, requests, "starts", host.plan("/bin/sleep", "1000"))
            assert requests.wait_for("starts") == ["starts"]
        finally:
            stranger.kill()
    requests.wait_for("forgets")
    assert not host.group(container).exists()


def test_two_requests_about_one_container_take_turns(host: Spawned, requests: Requests) -> None:
    container = host.start("/bin/true")
    host.client.wait_exit(container.key)
    again = container.plan
    requests.send("forgets", "forget", key=container.key)
    requests.send("starts", "start", plan=protocol.encode(again))
    requests.wait_for("forgets", "starts")
    assert [name for name in requests.answers if "ok" not in requests.answers[name]] == []


def test_an_insulad_that_does_not_read_is_hung_up_on(host: Spawned) -> None:
    silent = Requests(host)
    with silent.connection:
        silent.connection.setblocking(False)

        def is_hung_up() -> bool:
            assert host.client.ask("hello")["pid"] == host.process.pid, "others are served meanwhile"
            try:
                while True:
                    silent.send("again", "hello")
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        wait_until(is_hung_up, what="it is hung up on")
    assert host.client.ask("hello")["pid"] == host.process.pid


def test_what_was_born_for_an_insulad_that_has_gone_is_ended(host: Spawned) -> None:
    plan = host.plan("/bin/sleep", "1000")
    group = host.group(Started(plan, 0))
    group.create()
    group.freeze()
    gone = Requests(host)
    begin(host, gone, "starts", plan)
    wait_until(lambda: bool(group.pids()), what="it is being born")
    gone.connection.close()
    assert host.held() == {}, "not yet"
    group.thaw()
    assert host.client.wait_exit(plan.key) == 137


def test_failed_births_leave_no_child_and_no_descriptor(host: Spawned, requests: Requests) -> None:
    container = host.start("/bin/sleep", "1000")
    before = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    with frozen(host, container):
        for number in range(5):
            begin_exec(requests, f"stalls{number}", container, "/bin/true")
        requests.wait_for(*(f"stalls{number}" for number in range(5)))
    wait_until(
        lambda: len(os.listdir(f"/proc/{host.process.pid}/fd")) <= before, what="no descriptor is left"
    )
    wait_until(lambda: host.group(container).pids() == [container.pid], what="no child is left")

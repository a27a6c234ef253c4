# SPDX-License-Identifier: Apache-2.0
"""What users have open ends with the right that it stands on, also when insulad was killed in between."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

import hosted
from accounts import AccountsHost, people_restored_after
from hosted import wait_until

HOST_KIND = AccountsHost


@pytest.fixture
def here(host: hosted.Host) -> Iterator[AccountsHost]:
    """The host with its two people as they were."""
    yield from people_restored_after(host)


def test_what_a_user_has_open_ends_with_its_right(here: AccountsHost) -> None:
    here.alice("run", "-d", "--name", "web", "box", "sh", "-c", "while :; do echo x; sleep 0.1; done")
    with (
        here.alice.begin("logs", "-f", "web") as logs,
        here.alice.begin("exec", "web", "sleep", "1000") as entered,
        here.alice.begin("attach", "web") as attached,
        here.alice.begin("stats", "web") as stats,
        here.alice.begin("wait", "web") as waiting,
    ):
        for each in (logs, attached):
            assert each.stdout is not None
            assert each.stdout.readline() == b"x\n"
        wait_until(lambda: "sleep 1000" in here.alice("top", "web"), what="entered")
        here.root("user", "rm", "alice")
        for each in (logs, entered, attached, stats, waiting):
            assert each.wait(hosted.DEADLINE_S) != 0, each.args
    assert here.root.json("--tenant", "alice", "inspect", "web")[0]["status"] == "running"


def test_what_was_open_before_a_kill_ends_with_its_right(here: AccountsHost) -> None:
    here.alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    with here.alice.begin("exec", "web", "sleep", "1001") as entered:
        wait_until(lambda: "sleep 1001" in here.alice("top", "web"), what="entered")
        here.kill()
        here.start()
        assert entered.poll() is None
        here.root("user", "rm", "alice")
        assert entered.wait(hosted.DEADLINE_S) != 0


def test_what_is_open_into_a_tenant_ends_when_its_user_gets_another(here: AccountsHost) -> None:
    here.root("user", "set", "bob", "--tenant", "alice")
    here.alice("run", "-d", "--name", "web", "box", "sh", "-c", "while :; do echo x; sleep 0.1; done")
    with (
        here.alice.begin("logs", "-f", "web") as kept,
        here.bob.begin("logs", "-f", "web") as logs,
        here.bob.begin("exec", "web", "sleep", "1000") as entered,
        here.bob.begin("attach", "web") as attached,
        here.bob.asking("GET", "/v1/events") as events,
        here.bob.asking("GET", "/v1/containers/web/trace?kinds=file") as trace,
    ):
        for each in (kept, logs, attached):
            assert each.stdout is not None
            assert each.stdout.readline() == b"x\n"
        for open_one in (events, trace):
            assert b" 200 OK" in open_one.recv(65536)
        wait_until(lambda: "sleep 1000" in here.alice("top", "web"), what="entered")
        here.root("user", "set", "bob", "--tenant", "bob")
        for each in (logs, entered, attached):
            assert each.wait(hosted.DEADLINE_S) != 0, each.args
        for open_one in (events, trace):
            _read_to_the_end(open_one)
        assert kept.poll() is None
        kept.kill()
    assert here.alice.look("web")["status"] == "running"


def _read_to_the_end(connection: socket.socket) -> None:
    """Raises: TimeoutError if it stays open."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def test_what_was_open_into_a_tenant_before_a_kill_ends_when_its_user_gets_another(
    here: AccountsHost,
) -> None:
    here.root("user", "set", "bob", "--tenant", "alice")
    here.alice("run", "-d", "--name", "web", "box", "sh", "-c", "while :; do echo x; sleep 0.1; done")
    with (
        here.alice.begin("exec", "web", "sleep", "1001") as kept,
        here.root.begin("--tenant", "alice", "exec", "web", "sleep", "1002") as kept_for_admin,
        here.bob.begin("exec", "web", "sleep", "1003") as entered,
        here.bob.begin("attach", "web") as attached,
    ):
        assert attached.stdout is not None
        assert attached.stdout.readline() == b"x\n"
        for number in (1001, 1002, 1003):
            wait_until(lambda: f"sleep {number}" in here.alice("top", "web"), what="entered")  # noqa: B023
        here.kill()
        here.start()
        assert [each.poll() for each in (kept, kept_for_admin, entered, attached)] == [None] * 4
        here.root("user", "set", "bob", "--tenant", "bob")
        for each in (entered, attached):
            assert each.wait(hosted.DEADLINE_S) != 0, each.args
        assert [each.poll() for each in (kept, kept_for_admin)] == [None] * 2
        here.alice("kill", "web")


def test_what_a_token_has_open_ends_with_it(here: AccountsHost) -> None:
    here.alice("run", "-d", "--name", "web", "box", "sh", "-c", "while :; do echo x; sleep 0.1; done")
    token = here.alice("token", "create", "--scope", "read,logs")
    environment = {"PATH": "/usr/bin", "INSULA_TOKEN": token}
    with here.bob.begin("logs", "-f", "web", env=environment) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == b"x\n"
        here.alice("token", "rm", here.alice("token", "ls", "-q"))
        assert logs.wait(hosted.DEADLINE_S) != 0

# SPDX-License-Identifier: Apache-2.0
"""The socket that each user gets beside everybody's: whose it is, who uses it, and what becomes of it."""

import contextlib
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import GROUP_ID, Host, Person, answered, wait_until


def door_of(person: Person) -> Path:
    return person.host.socket_path.parent / "users" / f"{person.uid}.sock"


@contextlib.contextmanager
def hidden(path: Path) -> Iterator[None]:
    other = path.with_suffix(".hidden")
    path.rename(other)
    try:
        yield
    finally:
        other.rename(path)


def test_it_is_its_users_and_only_those_of_the_group_get_there(alice: Person) -> None:
    alice("ps")
    found = door_of(alice).stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (alice.uid, 0o600)
    folder = door_of(alice).parent.stat()
    assert (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode)) == (0, GROUP_ID, 0o710)


def test_the_client_uses_it_once_it_is_there(host: Host, alice: Person, root: Person) -> None:
    alice("ps")
    with hidden(host.socket_path):
        alice("ps")
        assert "cannot reach insulad" in root.fails("ps")


@contextlib.contextmanager
def being(person: Person) -> Iterator[None]:
    os.setegid(GROUP_ID)
    os.seteuid(person.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_nobody_else_can_connect_to_it(alice: Person, bob: Person) -> None:
    alice("ps")
    with socket.socket(socket.AF_UNIX) as connection, being(bob), pytest.raises(PermissionError):
        connection.connect(str(door_of(alice)))


def test_who_floods_it_is_alone_with_that(alice: Person, bob: Person) -> None:
    alice("ps")
    bob("ps")
    with contextlib.ExitStack() as held:
        for _ in range(1000):
            connection = held.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            with being(alice), contextlib.suppress(BlockingIOError):
                connection.connect(str(door_of(alice)))
        assert bob.json("whoami", "--format", "json")["name"] == bob.tenant
    wait_until(lambda: alice.give("ps").code == 0, what="served again, once it is over")


def test_it_goes_with_insulad_and_a_dead_one_is_passed_over(host: Host, alice: Person) -> None:
    alice("ps")
    host.kill(signal.SIGKILL)
    assert door_of(alice).exists()
    host.start()
    assert not door_of(alice).exists()
    alice("ps")
    assert door_of(alice).exists()
    host.kill(signal.SIGTERM)
    assert not door_of(alice).exists()


def test_who_is_refused_at_the_door_gets_a_whole_answer(root: Person, alice: Person) -> None:
    alice("ps")
    root("tenant", "set", alice.tenant, "requests=2")
    try:
        asked = [alice.asking("GET", "/v1/containers") for _ in range(40)]
        answers = [answered(each) for each in asked]
        for each in asked:
            each.close()
        assert {status for status, _ in answers} == {200, 429}
        assert {said["error"]["code"] for status, said in answers if status == 429} == {"too_many_requests"}
    finally:
        root("tenant", "set", alice.tenant, "requests=default")

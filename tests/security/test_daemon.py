# SPDX-License-Identifier: Apache-2.0
"""2a, T10, T11: who is believed to be whom, a daemon that dies at any moment, and one that lives for long."""

import contextlib
import itertools
import json
import os
import random
import select
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import forked
from accounts import AccountsHost
from hosted import GROUP_ID, Host, Person, answered, wait_until
from insula.kernel import idmap, libc
from insula.tenant.idmap import FIRST_UID
from security.asking import create

WHOAMI = b"GET /v1/containers?tenant=root HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def asked_as(host: Host, uid: int, *, gid: int = GROUP_ID, groups: Sequence[int] = ()) -> str:
    """Ask as a uid; returns the first line of the answer, or the error's name."""

    def act() -> str:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(host.socket_path))
            except OSError as error:
                return type(error).__name__
            connection.sendall(WHOAMI)
            return connection.recv(65536).split(b"\r\n")[0].decode()

    return forked.run(act)


@pytest.mark.parametrize("uid", [FIRST_UID, FIRST_UID + 1000, FIRST_UID + 65535, FIRST_UID + 65536 * 7])
def test_2a_uid_of_a_container_is_nobody(the_host: Host, uid: int) -> None:
    assert "403" in asked_as(the_host, uid)


def test_2a_uid_that_is_only_lent_is_nobody(ruled: AccountsHost) -> None:
    """Who is in the group stays in it as each of the uids of its line in /etc/subuid: it is not as many users."""
    lent = range(300_000, 300_003)
    (ruled.folder / "etc/subuid").write_text(f"alice:{lent[0]}:65536\n")

    def known() -> list[str]:
        listed = (ruled.root.json(kind, "ls", "--format", "json") for kind in ("user", "tenant"))
        return [each["name"] for rows in listed for each in rows]

    before, doors = known(), ruled.folder / "run/users"
    for uid in lent:
        assert " 403 " in asked_as(ruled, uid, gid=uid, groups=[GROUP_ID])
    assert known() == before
    assert {f"{uid}.sock" for uid in lent} & set(os.listdir(doors)) == {f"{lent[0]}.sock"}, "counted as one"
    ruled.accounts["carol"] = lent[0]
    ruled.write_accounts()
    assert " 404 " in asked_as(ruled, lent[0], gid=lent[0], groups=[GROUP_ID])
    del ruled.accounts["carol"]
    ruled.write_accounts()
    assert " 401 " in asked_as(ruled, lent[0], gid=lent[0], groups=[GROUP_ID])


def test_2a_who_is_not_in_the_group_is_not_let_in(the_host: Host) -> None:
    assert asked_as(the_host, 64799, gid=64799) == "PermissionError"


def test_2a_tenants_own_word_is_not_believed(the_host: Host) -> None:
    assert " 404 " in asked_as(the_host, the_host.alice.uid) + " "


def test_2a_root_of_a_user_namespace_is_who_made_it(the_host: Host) -> None:
    def act() -> str:
        ids = (idmap.Range(0, the_host.alice.uid, 1),)
        groups = (idmap.Range(0, GROUP_ID, 1),)
        namespace = idmap.user_namespace(uids=ids, gids=groups)
        libc.setns(namespace, idmap.CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        assert os.getuid() == 0
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(the_host.socket_path))
            connection.sendall(WHOAMI)
            return connection.recv(65536).split(b"\r\n")[0].decode()

    assert "404" in forked.run(act)


def test_2a_connection_that_is_passed_on_stays_its_makers(the_host: Host) -> None:
    """The kernel's word is of the moment of connect: who gets a descriptor from a user acts as that user, not as itself."""
    with the_host.alice.connected() as connection:
        connection.sendall(
            b"POST /v1/hosts/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        assert answered(connection)[0] == 403  # sent by root, over alice's connection


def test_2a_descriptors_that_are_sent_along_are_not_taken(the_host: Host) -> None:
    daemon = the_host.daemon
    assert daemon is not None

    def held() -> int:
        return len(os.listdir(f"/proc/{daemon.pid}/fd"))

    before = held()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(the_host.alice.connected())
            socket.send_fds(connection, [b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"], [0] * 100)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert held() <= before + 25
    wait_until(lambda: held() <= before + 2, what="they are closed")


@pytest.mark.parametrize("place", ["run", "state", "run/spawner.sock", "run/api.sock"])
def test_2a_sockets_and_folders_are_the_daemons(the_host: Host, place: str) -> None:
    found = (the_host.folder / place).stat()
    assert found.st_uid == 0
    if place in ("state", "run/spawner.sock"):
        assert found.st_mode & 0o077 == 0
    assert found.st_mode & 0o007 == (0o001 if place == "run" else 0) or place == "run"


def test_2a_spawner_is_not_reached_by_a_user(the_host: Host) -> None:
    def act() -> str:
        os.setgroups([])
        os.setresgid(GROUP_ID, GROUP_ID, GROUP_ID)
        os.setresuid(the_host.alice.uid, the_host.alice.uid, the_host.alice.uid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(str(the_host.folder / "run/spawner.sock"))
            except OSError as error:
                return type(error).__name__
        return "connected"

    assert forked.run(act) in ("PermissionError", "FileNotFoundError")


def test_2a_no_abstract_socket_is_ours(the_host: Host) -> None:
    """CVE-2020-15257: who shares a network with one needs no file to reach it."""
    with the_host.entered():
        names = Path("/proc/thread-self/net/unix").read_text()
    assert "@" not in "".join(line.split()[-1] for line in names.splitlines()[1:] if "insula" in line)


def _load(host: Host, person: Person, over: threading.Event, *, seed: int) -> None:
    chance = random.Random(seed)
    while not over.is_set():
        name = f"c{chance.randrange(4)}"
        verbs = [
            ("start", b""),
            ("kill", b"{}"),
            ("pause", b""),
            ("unpause", b""),
            ("stop", b'{"timeout_s": 0}'),
        ]
        with contextlib.suppress(OSError, IndexError, ValueError):
            create(person, name=name)
            verb, body = chance.choice(verbs)
            person.ask("POST", f"/v1/containers/{name}/{verb}", body=body)
            if chance.random() < 0.3:
                person.ask("DELETE", f"/v1/containers/{name}?force=1")


def all_of(person: Person) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = person.ask("GET", "/v1/containers?all=1")[1]
    return records


def is_there(record: dict[str, Any]) -> bool:
    """Whether what is said to run has a process."""
    return record["status"] not in ("running", "paused") or Path(f"/proc/{record['pid']}").exists()


@pytest.mark.parametrize("seed", range(8))
def test_t10_daemon_that_is_killed_at_any_moment(host: Host, seed: int) -> None:
    over = threading.Event()
    people = (host.alice, host.bob)
    load = [
        threading.Thread(target=_load, args=(host, person, over), kwargs={"seed": seed}) for person in people
    ]
    for each in load:
        each.start()
    try:
        select.select([], [], [], 0.5 + random.Random(seed).random())
        host.kill()
    finally:
        over.set()
        for each in load:
            each.join()
    host.start()
    for person in people:
        status, records = person.ask("GET", "/v1/containers?all=1")
        assert status == 200
        for record in records:
            assert record["status"] in ("created", "running", "paused", "exited"), record
        # One that was sent a signal at last may have just ended: nobody has written that down yet.
        wait_until(
            lambda person=person: all(map(is_there, all_of(person))), what="each that runs has a process"
        )  # type: ignore[misc]
    assert host.root.ask("GET", "/v1/operations?tenant=*")[0] == 200
    host.root("audit", "verify")  # whatever was being written when it died
    for record in host.root.ask("GET", "/v1/containers?all=1&tenant=*")[1]:
        target = f"/v1/containers/{record['id']}?force=1&tenant={record['tenant']}"
        assert host.root.ask("DELETE", target)[0] == 204
    wait_until(lambda: not host.remains(), what=lambda: f"nothing stays: {host.remains()}")


def _spawner(host: Host) -> int:
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_text() if entry.isdigit() else ""
            if "spawner" in words and str(host.folder) in words:
                return int(entry)
    raise AssertionError("no spawner")


def _holdings(host: Host) -> dict[str, int]:
    assert host.daemon is not None
    found = {}
    for name, pid in (("insulad", host.daemon.pid), ("spawner", _spawner(host))):
        status = Path(f"/proc/{pid}/status").read_text()
        found[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"{name} threads"] = len(os.listdir(f"/proc/{pid}/task"))
        found[f"{name} mounts"] = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
        found[f"{name} resident KiB"] = int(status.split("VmRSS:")[1].split()[0])
    found["database KiB"] = (
        sum(path.stat().st_size for path in (host.folder / "state").glob("db.sqlite")) >> 10
    )
    return found


def _cycle(person: Person) -> None:
    status, error = create(person)
    assert status == 201, error
    assert person.ask("POST", "/v1/containers/c/start")[0] == 204
    assert (
        person.ask("POST", "/v1/containers/c/exec", body=b'{"command": ["true"], "detach": true}')[0] == 200
    )
    assert (
        person.ask("POST", "/v1/containers/c/exec", body=b'{"command": ["no-such"], "detach": true}')[0]
        == 422
    )
    assert person.ask("DELETE", "/v1/containers/c?force=1")[0] == 204


#: What each may hold more after many cycles: caches and the allocator's leftovers, nothing per cycle.
SLACK = {"descriptors": 6, "threads": 8, "mounts": 0, "resident KiB": 12_000, "database KiB": 256}


MIN_CYCLES, CYCLES_S = 60, 15.0


def test_t11_many_cycles_leave_nothing(host: Host, alice: Person) -> None:
    for _ in range(15):
        _cycle(alice)
    before = _holdings(host)
    end = time.monotonic() + CYCLES_S
    for number in itertools.count():
        _cycle(alice)
        if number >= MIN_CYCLES and time.monotonic() > end:
            break
    wait_until(
        lambda: all(
            value <= before[name] + next(slack for word, slack in SLACK.items() if word in name)
            for name, value in _holdings(host).items()
        ),
        what=lambda: json.dumps({"before": before, "now": _holdings(host)}),
    )

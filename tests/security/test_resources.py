# SPDX-License-Identifier: Apache-2.0
"""A27, 2b: alice takes all she can get of something; bob takes one of it, and is answered.

Containers with bombs have limits of memory, processes and CPU; what else runs out is the kernel's own, which nobody else's
container must feel.  Figures of latency are those of `make bench-tenants`; here only: it is answered.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import Host, Person, answered, wait_until
from insula.kernel.netlink import Route, configure_inside
from insula.network.firewall import FLOWS
from netns import listener, new_namespace
from security import bombs
from waiting import DEADLINE_S

LIMITS = ("-m", "96m", "--memory-swap", "96m", "--pids", "100", "--cpus", "0.6")
BOMB = "bomb"


@pytest.fixture
def neighbour(host: Host, bob: Person) -> Person:
    bob("run", "-d", "--name", "n", *LIMITS, "host", "sleep", "1000")
    return bob


def explode(alice: Person, program: str, *, limits: tuple[str, ...] = LIMITS) -> str:
    """Start a bomb and wait until it says that it is full, or has ended; returns what it said."""
    alice("run", "-d", "--name", BOMB, *limits, "host", "python3", "-ISc", program)
    said: list[str] = []

    def is_full() -> bool:
        said[:] = alice("logs", BOMB).splitlines()
        return any(line.startswith("full") for line in said) or alice.look(BOMB)["status"] == "exited"

    wait_until(is_full, what=lambda: f"it is full: {said}", deadline_s=3 * DEADLINE_S)
    return said[-1] if said else "killed"


def is_answered(host: Host, person: Person) -> None:
    """The daemon, the spawner and a container of somebody else's answer."""
    began = time.monotonic()
    status, _ = person.ask("GET", "/v1/containers")
    assert status == 200
    assert person("exec", "n", "echo", "alive") == "alive"
    assert person("run", "--rm", "box", "echo", "new") == "new"
    print(f"answered within {time.monotonic() - began:.2f} s")


@pytest.mark.parametrize("unit", bombs.UNITS)
def test_a27_who_takes_all_takes_it_from_nobody_else(
    host: Host, alice: Person, neighbour: Person, unit: str
) -> None:
    said = explode(alice, bombs.exhausting(unit))
    print(said)
    done = neighbour.give("exec", "n", "python3", "-ISc", bombs.taking(unit))
    assert done.out.strip().endswith("taken"), (said, done)
    is_answered(host, neighbour)


#: What a container has a limit of that was given none: other limits than of processes and memory, the machine's to give.
UNLIMITED = ("descriptor", "terminal", "inotify", "watch", "epoll", "queue", "semaphores", "message-queue", "timer", "signal", "flight")  # fmt: skip


@pytest.mark.parametrize("unit", UNLIMITED)
def test_a27_who_takes_all_in_a_container_without_limits(
    host: Host, alice: Person, neighbour: Person, unit: str
) -> None:
    said = explode(alice, bombs.exhausting(unit), limits=())
    done = neighbour.give("exec", "n", "python3", "-ISc", bombs.taking(unit))
    assert done.out.strip().endswith("taken"), (said, done)
    is_answered(host, neighbour)


def test_a27_memory_that_is_taken_again_and_again(host: Host, alice: Person, neighbour: Person) -> None:
    """Each time its cgroup is full the kernel ends the taker, and the next one begins."""
    assert "taken back" in explode(alice, bombs.OUT_OF_MEMORY)
    before = alice("logs", BOMB).count("\n")
    wait_until(
        lambda: alice("logs", BOMB).count("\n") > before + 2, what="it goes on", deadline_s=3 * DEADLINE_S
    )
    is_answered(host, neighbour)
    assert alice.look(BOMB)["status"] == "running", "its first program is the last that is ended"
    assert neighbour.look("n")["status"] == "running"


def test_2b_log_is_bounded(host: Host, alice: Person, neighbour: Person) -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    alice("run", "-d", "--name", BOMB, *LIMITS, "host", "python3", "-ISc", flood)
    folder = host.folder / "state/containers" / alice.look(BOMB)["id"]
    wait_until((folder / "log.1").exists, what="the log is turned over")
    is_answered(host, neighbour)
    assert sum(map(size_of, (folder / "log", folder / "log.1"))) < 32 << 20


def size_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # it is being turned over
        return path.stat().st_size
    return 0


@pytest.mark.parametrize(
    "text",
    [r"\x00\x01\x02", r"\x1b[2J\x1b]0;x\x07", r"\r\n\r\n", r"\xff\xfe\xfa", r"\xe2\x80\xa8", r'{"time": "2001", "stream": "stderr", "tenant": "root"}\n', r"HTTP/1.1 101 OK\r\n\r\n"],
    ids=["zeros", "terminal", "returns", "no-unicode", "line-separator", "json", "http"],
)  # fmt: skip
def test_2b_log_is_text_and_steers_nobody(alice: Person, text: str) -> None:
    alice("run", "--name", "c", "box", "printf", text)
    wanted = text.encode().decode("unicode_escape").encode("latin-1")
    with alice.begin("logs", "c") as process:
        assert process.communicate(timeout=DEADLINE_S)[0].removesuffix(b"\n") == wanted.removesuffix(b"\n")
    alice("run", "--name", "d", "box", "echo", "next")
    assert alice("logs", "d") == "next"


def test_2b_api_connections_of_one_user_stop_nobody_else(
    host: Host, alice: Person, neighbour: Person
) -> None:
    with contextlib.ExitStack() as held:
        for number in range(1500):
            try:
                connection = held.enter_context(alice.connected())
                if number % 3 == 1:
                    connection.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                if number % 3 == 2:
                    connection.sendall(
                        b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
                    )
            except OSError:
                break
        is_answered(host, neighbour)


def test_2b_requests_at_once_stop_nobody_else(host: Host, alice: Person, neighbour: Person) -> None:
    with contextlib.ExitStack() as held:
        waiting = []
        for _ in range(300):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was said
                waiting.append(held.enter_context(alice.asking("GET", "/v1/containers?all=1")))
        is_answered(host, neighbour)
        statuses = set()
        for each in waiting:
            with contextlib.suppress(ConnectionResetError):
                statuses.add(answered(each)[0])
        assert statuses <= {200, 429}


@pytest.mark.parametrize(
    "body",
    [b'{"labels":' * 100_000, b"[" * 500_000, b'{"pids": 1e400, "image": "box"}', b'{"pids": ' + b"9" * 5000 + b', "image": "box"}',
     b'{"image": "box", "image": "host", "command": ["true"], "name": "../x"}', b'{"image": "box", "command": ["' + b"x" * 900_000 + b'"]}',
     b" " * 1_000_000, b'"' + b"\\u0000" * 100_000 + b'"', b'{"image": "box", "labels": {"\\ud800": "x"}}', b"\xef\xbb\xbf{}", b'{"image": "\xff"}', b'{"\xff": 1}'],
    ids=["deep-objects", "deep-lists", "infinite", "long-number", "twice", "long-word", "blanks", "zeros", "surrogate", "mark", "no-text", "no-text-for-a-name"],
)  # fmt: skip
def test_2b_body_that_costs_more_than_it_weighs(host: Host, alice: Person, body: bytes) -> None:
    before = host.remains()
    heard: list[tuple[int, object]] = []

    def is_heard() -> bool:
        """Whether it was judged: until the floods before this have been forgotten, the door refuses."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            heard[:] = [alice.ask("POST", "/v1/containers", body=body)]
        return heard != [] and heard[0][0] != 429

    wait_until(is_heard, what=lambda: f"an answer: {heard}")
    status, answer = heard[0]
    assert 400 <= status < 500, answer
    assert host.remains() == before


def test_2b_upload_larger_than_a_body_may_be_is_refused_before_it_is_read(alice: Person) -> None:
    with alice.connected() as connection:
        connection.sendall(b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                connection.sendall(bytes(1 << 20))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(4096)
        assert answer == b"" or b" 4" in answer.split(b"\r\n")[0]


NAMES = [
    "..",
    ".",
    " ",
    "-rf",
    "a/b",
    "a%2fb",
    "a\nb",
    "a" * 200,
    "á",
    "a b",
    "a;b",
    "$(x)",
    "*",
    "default ",
    "\u202e",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["containers", "volumes", "networks"])
def test_2b_name_that_is_none(host: Host, alice: Person, kind: str, name: str) -> None:
    wish = {"name": name} | ({"image": "box", "command": ["true"]} if kind == "containers" else {})
    status, answer = alice.ask("POST", f"/v1/{kind}", body=json.dumps(wish).encode())
    assert 400 <= status < 500, answer
    assert host.remains() == []


@pytest.fixture
def beyond(host: Host) -> Iterator[int]:
    """A world outside the host, which swallows what is sent."""
    outside = new_namespace()
    with Route.in_namespace(host.network) as route:
        route.create_veth("wan1", peer="eth0", peer_netns_fd=outside)
        route.add_address("wan1", "198.51.100.1", 24)
    with Route.in_namespace(outside) as route:
        configure_inside(route, interface="eth0", address="198.51.100.2", prefix_length=24)
    yield outside
    with Route.in_namespace(host.network) as route:
        route.delete("wan1")
    os.close(outside)


CONNECTIONS = """
import os, socket, time
for number in range(20000):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            made.sendto(b"x", ("198.51.100.2", 1024 + number))
        except OSError:
            pass
os.write(1, b"full\\n")
time.sleep(1000)
"""
ANSWER = "import socket; s = socket.create_connection(('198.51.100.2', 80), 20); print('connected')"


def test_2b_tracked_connections_of_one_tenant_leave_room_for_others(
    host: Host, alice: Person, neighbour: Person, beyond: int
) -> None:
    explode(alice, CONNECTIONS)
    with host.entered():
        count = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
    assert count < FLOWS * 1.1
    with listener(beyond, port=80):
        assert neighbour("exec", "n", "python3", "-ISc", ANSWER) == "connected"
    is_answered(host, neighbour)


def test_2b_words_that_are_no_text_are_shown_by_top(alice: Person) -> None:
    rename = (
        r"printf '#!/bin/sh\nsleep 1000\n' > \"$(printf '/tmp/x\377y')\"; chmod 755 /tmp/x*; exec /tmp/x*"
    )
    alice("run", "-d", "--name", "c", "box", "sh", "-c", rename.replace('\\"', '"'))
    wait_until(lambda: "sleep" in alice("top", "c"), what="it runs")
    assert alice.ask("GET", "/v1/containers/c/top")[0] == 200

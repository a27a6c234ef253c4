# SPDX-License-Identifier: Apache-2.0
"""Connections from other hosts that say nothing: bounded, cut in time, and no descriptor of users here goes to them."""

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from hosted import Host, wait_until
from insula.daemon.strangers import MAX_OF_ADDRESS

PORT = 18643
SOFT, HARD = 256, 20000
FLOOD = 400
"""More than the soft limit of descriptors with which insulad is started."""
ROOM = 200
"""Descriptors that may come to be used by it: fewer than its connections."""


class LimitedHost(Host):
    """A host whose insulad is started with few descriptors, and listens for others."""

    def _words(self) -> list[str]:
        return [
            "prlimit",
            f"--nofile={SOFT}:{HARD}",
            "--",
            *super()._words(),
            "--listen",
            f"127.0.0.1:{PORT}",
        ]


@pytest.fixture(scope="module")
def module_host(program: Path, image: bytes) -> Iterator[Host]:
    with hosted.host(program, image, kind=LimitedHost) as made:
        yield made


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def descriptors(host: Host) -> int:
    assert host.daemon is not None
    return len(os.listdir(f"/proc/{host.daemon.pid}/fd"))


def test_who_has_been_served_as_somebody_stays(host: Host) -> None:
    token, context = host.root("token", "create"), anonymous()
    ask = f"GET /v1/events HTTP/1.1\r\nHost: insula\r\nAuthorization: Bearer {token}\r\n\r\n"
    with context.wrap_socket(host.connect("127.0.0.1", PORT)) as events, contextlib.ExitStack() as held:
        events.sendall(ask.encode())
        assert events.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(MAX_OF_ADDRESS + 1):
            held.enter_context(context.wrap_socket(host.connect("127.0.0.1", PORT)))
        host.root("create", "--name", "told", "box", "true")
        heard = b""
        while b"told" not in heard:
            piece = events.recv(65536)
            assert piece, heard
            heard += piece


def test_containers_have_the_limit_with_which_insulad_was_started(host: Host) -> None:
    assert host.daemon is not None
    limits = Path(f"/proc/{host.daemon.pid}/limits").read_text()
    [line] = [each for each in limits.splitlines() if each.startswith("Max open files")]
    assert line.split()[3:5] == [str(HARD), str(HARD)]
    assert host.bob("run", "--rm", "box", "sh", "-c", "ulimit -Sn; ulimit -Hn").split() == [
        str(SOFT),
        str(HARD),
    ]


def test_a_flood_of_silent_connections_takes_nothing_from_users_here(host: Host) -> None:
    host.bob("ps")
    before, context = descriptors(host), anonymous()
    with contextlib.ExitStack() as held:
        for _ in range(FLOOD):
            connection = held.enter_context(host.connect("127.0.0.1", PORT))
            with contextlib.suppress(OSError):  # cut meanwhile
                held.enter_context(context.wrap_socket(connection))
        assert descriptors(host) - before < ROOM
        host.bob("ps")
        host.root("ps")
    wait_until(lambda: descriptors(host) <= before + 8, what=lambda: f"closed: {descriptors(host)}, {before}")
    assert "Too many open files" not in host.log()

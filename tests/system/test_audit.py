# SPDX-License-Identifier: Apache-2.0
"""`insula audit`: what is written down, who reads it, and what a changed line says."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor, wait

from hosted import Host
from insula.kernel.unix_peer import process


def has_peer_pidfd() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return process(ours).began is not None


def test_each_request_is_a_line_and_ones_own_part_is_readable(host: Host) -> None:
    host.alice("create", "--name", "hers", "box", "true")
    host.alice.fails("inspect", "nothing")
    host.bob("create", "--name", "his", "box", "true")
    hers = host.alice.json("audit", "ls", "--format", "json")
    made = [line for line in hers if line["path"] == "/v1/containers" and line["method"] == "POST"][-1]
    assert (made["who"], made["from"], made["decision"], made["result"]) == (
        host.alice.tenant,
        "unix",
        "allowed",
        "ok",
    )
    assert made["ms"] > 0
    assert made["pid"] > 0
    assert isinstance(made.get("pid_began"), int) or not has_peer_pidfd()
    assert [line for line in hers if line["result"] == "container_not_found"]
    assert {line["tenant"] for line in hers} == {host.alice.tenant}
    last = host.alice.json("audit", "ls", "--tail", "1", "--format", "json")
    assert [line["path"] for line in last] == ["/v1/audit"]  # the listing before this one
    both = host.root.json("--tenant", "*", "audit", "ls", "--format", "json")
    assert {host.alice.tenant, host.bob.tenant} <= {line.get("tenant") for line in both}


def test_a_long_list_is_whole(host: Host) -> None:
    for _ in range(450):
        assert host.root.ask("GET", "/v1/containers")[0] == 200
    numbers = [line["n"] for line in host.root.json("--tenant", "*", "audit", "ls", "--format", "json")]
    assert len(numbers) > 400
    assert numbers == [*range(numbers[0], numbers[-1] + 1)]


def test_a_changed_line_is_found(host: Host) -> None:
    assert "as they were written" in host.root("audit", "verify")
    log = host.folder / "state/audit.log"
    kept = log.read_bytes()
    host.alice("ps")
    log.write_bytes(log.read_bytes().replace(b'"POST"', b'"GETS"', 1))
    try:
        assert "the audit log is not as it was written: audit.log, line" in host.root.fails("audit", "verify")
    finally:
        with open(log, "r+b") as file:
            file.write(kept)
    assert "as they were written" in host.root("audit", "verify")


def test_after_each_kill_of_insulad_the_log_is_right(host: Host) -> None:
    """Requests are under way at that moment; afterwards no line is there twice, and none is torn."""
    for _ in range(5):
        with ThreadPoolExecutor(4) as askers:
            asked = [askers.submit(ask_until_gone, host) for _ in range(4)]
            assert host.root.ask("GET", "/v1/version")[0] == 200
            host.kill()
            wait(asked)
        host.start()
        assert "as they were written" in host.root("audit", "verify")


def ask_until_gone(host: Host) -> int:
    """Ask again and again on one connection until nobody answers.  Returns: how often somebody did."""
    count = 0
    with host.alice.connected() as connection, contextlib.suppress(ConnectionError):
        while True:
            connection.sendall(b"GET /v1/version HTTP/1.1\r\nHost: insula\r\n\r\n")
            if not connection.recv(65536):
                return count
            count += 1
    return count


def test_others_than_admins_cannot_verify(host: Host) -> None:
    assert "needs the right" in host.alice.fails("audit", "verify")

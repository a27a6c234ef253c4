# SPDX-License-Identifier: Apache-2.0
"""`insula audit`: what is written down, who reads it, and what a changed line says."""

import contextlib
import http.client
import socket
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from hosted import Host, wait_until
from insula.kernel.unix_peer import process
from insula.tenant.idmap import FIRST_UID


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


def test_a_flood_is_counted_and_leaves_room_for_others(host: Host) -> None:
    since = str(time.time())
    for number in range(450):
        assert host.root.ask("GET", f"/v1/containers/no{number}")[0] == 404
    seen: list[Any] = []

    def is_told() -> bool:
        seen[:] = host.root.json("--tenant", "*", "audit", "ls", "--since", since, "--format", "json")
        told = [line.get("times", 1) for line in seen if line["result"] == "container_not_found"]
        return sum(told) == 450 and len(told) < 400

    wait_until(is_told, what=lambda: f"450 requests: {seen[-3:]}")
    assert next(line["path"] for line in seen if line.get("times", 1) > 1) == "*"
    assert "as they were written" in host.root("audit", "verify")


def test_a_flood_of_starts_that_change_nothing_is_counted(host: Host) -> None:
    host.root("run", "-d", "--name", "runs", "box", "sleep", "1000")
    log = host.folder / "state/audit.log"
    before = log.read_bytes().count(b"\n")
    begun = time.monotonic()
    asking = http.client.HTTPConnection("insula")
    asking.sock = host.root.connected()
    with contextlib.closing(asking):
        for _ in range(2000):
            asking.request("POST", "/v1/containers/runs/start")
            answer = asking.getresponse()
            answer.read()
            assert answer.status == 304
    # Some a second are written down one by one: on a busy machine it takes some seconds.
    assert log.read_bytes().count(b"\n") - before < 300 + 8 * (time.monotonic() - begun)
    told = host.root.json("audit", "ls", "--format", "json")
    assert {line["result"] for line in told if line["path"].endswith("/runs/start")} == {"unchanged"}


def test_what_nobody_looks_at_is_counted(host: Host) -> None:
    for word in ("one", "two"):
        assert host.alice.ask("GET", f"/v1/{word}")[0] == 404
    seen: list[Any] = []

    def is_told() -> bool:
        lines = host.root.json("--tenant", "*", "audit", "ls", "--format", "json")
        seen[:] = [line for line in lines if line.get("uid") == host.alice.uid and "action" not in line]
        return sum(line.get("times", 1) for line in seen) == 2

    wait_until(is_told, what=lambda: f"two unknown paths: {seen}")
    assert {(line["who"], line["decision"], line["result"]) for line in seen} == {
        ("", "refused", "not_found")
    }


def test_a_changed_line_is_found(host: Host) -> None:
    assert "as they were written" in host.root("audit", "verify")
    log = host.folder / "state/audit.log"
    place = log.read_bytes().index(b'"POST"')

    def overwrite(word: bytes) -> None:
        """In its place, whatever insulad adds meanwhile."""
        with open(log, "r+b") as file:
            file.seek(place)
            file.write(word)

    overwrite(b'"GETS"')
    try:
        assert "the audit log is not as it was written: audit.log, line" in host.root.fails("audit", "verify")
    finally:
        overwrite(b'"POST"')
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


def last_of(host: Host, path: str, *, method: str) -> dict[str, Any]:
    """Return the last line about a path, as an admin reads it."""
    lines = host.root.json("--tenant", "*", "audit", "ls", "--format", "json")
    return [line for line in lines if line["path"] == path and line["method"] == method][-1]


def test_a_refused_caller_is_told_by_what_it_showed(host: Host) -> None:
    nobody = replace(host.bob, name="nobody", uid=FIRST_UID + 5)
    status, error = nobody.ask("GET", "/v1/containers")
    assert (status, error["error"]["code"]) == (403, "denied")
    line = last_of(host, "/v1/containers", method="GET")
    assert (line["who"], line["uid"], line["decision"], line["result"]) == (
        "", nobody.uid, "refused", "denied",
    )  # fmt: skip
    assert line["pid"] > 0


def test_a_refusal_is_in_the_part_of_who_was_refused(host: Host) -> None:
    assert host.alice.ask("GET", "/v1/users")[0] == 403
    hers = host.alice.json("audit", "ls", "--format", "json")
    refused = [line for line in hers if line["path"] == "/v1/users"][-1]
    assert (refused["tenant"], refused["decision"]) == (host.alice.tenant, "refused")


def test_a_tenant_that_may_not_be_seen_is_a_refusal_and_named(host: Host) -> None:
    assert host.alice.ask("GET", f"/v1/containers?tenant={host.bob.tenant}")[0] == 404
    line = last_of(host, "/v1/containers", method="GET")
    assert (line["decision"], line["result"]) == ("refused", "not_found")
    assert (line["tenant"], line["asked_tenant"]) == (host.alice.tenant, host.bob.tenant)
    assert not [each for each in host.bob.json("audit", "ls", "--format", "json") if "asked_tenant" in each]


def test_what_an_admin_does_to_ones_container_is_in_ones_part(host: Host) -> None:
    host.alice("create", "--name", "hers", "box", "true")
    assert host.root.ask("DELETE", "/v1/containers/hers?tenant=*")[0] == 204
    hers = host.alice.json("audit", "ls", "--format", "json")
    assert [line["who"] for line in hers if line["method"] == "DELETE"][-1] == "root"


def test_how_much_others_ask_is_not_told(host: Host) -> None:
    host.alice("ps")
    for person, is_told in ((host.alice, False), (host.root, True)):
        lines = person.json("audit", "ls", "--format", "json")
        assert lines
        assert {("n" in line, "prev" in line) for line in lines} == {(is_told, is_told)}


def test_what_was_made_is_named(host: Host) -> None:
    host.alice("create", "--name", "hers", "box", "true")
    made = last_of(host, "/v1/containers", method="POST")
    assert (made["made"], made["made_name"]) == (host.alice.look("hers")["id"], "hers")
    host.alice("volume", "create", "data")
    assert last_of(host, "/v1/volumes", method="POST")["made"] == "data"
    host.root("network", "create", "net")
    assert last_of(host, "/v1/networks", method="POST")["made_name"] == "net"

# SPDX-License-Identifier: Apache-2.0
"""T8, T9: two requests for one thing, and requests that are somebody else's."""

import contextlib
import itertools
import random
import threading

import pytest

from hosted import Host, Person, answered, wait_until
from insula.api.routes import ROUTES, Route
from security.asking import create, name_of, target

VERBS = {
    "start": ("POST", "/start", b""), "stop": ("POST", "/stop", b'{"timeout_s": 0}'), "kill": ("POST", "/kill", b"{}"), "pause": ("POST", "/pause", b""),
    "unpause": ("POST", "/unpause", b""), "restart": ("POST", "/restart", b'{"timeout_s": 0}'), "rename": ("POST", "/rename", b'{"name": "c"}'),
    "exec": ("POST", "/exec", b'{"command": ["sleep", "100"], "detach": true}'), "delete": ("DELETE", "?force=1", b""),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations_with_replacement(VERBS, 2)))
def test_t8_two_verbs_at_once(host: Host, alice: Person, one: str, other: str) -> None:
    status, error = create(alice)
    assert status == 201, error
    if "start" not in (one, other):
        assert alice.ask("POST", "/v1/containers/c/start")[0] == 204
    with contextlib.ExitStack() as held:
        asked = []
        for _ in range(2):
            for verb in (one, other):
                method, path, body = VERBS[verb]
                asked.append(held.enter_context(alice.asking(method, f"/v1/containers/c{path}", body=body)))
        statuses = [answered(each)[0] for each in asked]
    assert all(status < 500 for status in statuses), (statuses, host.log()[-3000:])
    status, record = alice.ask("GET", "/v1/containers/c")
    assert status == 404 or record["status"] in ("created", "running", "paused", "exited"), record
    if status == 200:
        assert alice.ask("DELETE", "/v1/containers/c?force=1")[0] == 204
    wait_until(lambda: not host.remains(), what=lambda: f"nothing stays: {host.remains()}")


@pytest.mark.parametrize(
    "head",
    ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Host: evil.example"],
)
def test_t9_browser_is_no_caller(alice: Person, head: str) -> None:
    text = f"POST /v1/containers/x/exec HTTP/1.1\r\nHost: insula\r\n{head}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\nSec-WebSocket-Version: 13\r\nContent-Length: 22\r\n\r\n" + '{"command": ["true"]} '  # fmt: skip
    with alice.connected() as connection:
        connection.sendall(text.encode())
        answer = connection.recv(65536)
    assert b" 101 " not in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("way", ["?token=x", "?access_token=x", "?uid=0", "?user=root", "?principal=root"])
def test_t9_word_in_the_address_gives_no_rights(alice: Person, way: str) -> None:
    status, _ = alice.ask("POST", f"/v1/hosts/token{way}")
    assert status == 403


@pytest.mark.parametrize(
    "head",
    [
        "X-Remote-User: root",
        "X-Forwarded-For: 127.0.0.1",
        "Authorization: Basic cm9vdDo=",
        "X-Insula-User: root",
        "X-Insula-Uid: 0",
        "Authorization: Bearer 0000",
    ],
)
def test_t9_head_gives_no_rights(alice: Person, head: str) -> None:
    with alice.connected() as connection:
        connection.sendall(
            f"POST /v1/hosts/token HTTP/1.1\r\nHost: insula\r\n{head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        status, _ = answered(connection)
    assert status in (401, 403)


@pytest.mark.parametrize(
    "smuggled", ["length-twice", "length-and-chunks", "two-requests", "bare-newlines", "absolute-address"]
)
def test_t9_second_request_within_one_is_its_own_callers(alice: Person, smuggled: str) -> None:
    inner = "POST /v1/hosts/token HTTP/1.1\r\nHost: insula\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    text = {
        "length-twice": f"GET /v1/version HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {len(inner)}\r\n\r\n{inner}",
        "length-and-chunks": f"GET /v1/version HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        "two-requests": f"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n{inner}",
        "bare-newlines": f"GET /v1/version HTTP/1.1\nHost: x\n\n{inner}",
        "absolute-address": "POST http://127.0.0.1/v1/hosts/token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    }[smuggled]  # fmt: skip
    heard = b""
    with alice.connected() as connection:
        connection.sendall(text.encode())
        connection.settimeout(2.0)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while piece := connection.recv(65536):
                heard += piece
    assert b'"token"' not in heard


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_t13_noise_is_an_error_of_its_sender(the_host: Host, route: Route) -> None:
    chance = random.Random(name_of(route))
    for _ in range(3):
        body = chance.randbytes(chance.randrange(1, 400))
        ref = "".join(chance.choices("abc%0.~", k=8)).replace("%", "%25")
        query = f"?tail={chance.random()}&x=%ff&path=%00&name=%2e%2e"
        status, _ = the_host.bob.ask(route.method, target(route, ref) + query, body=body)
        assert status < 500, body


def test_t12_audit_is_not_a_tenants_to_read_or_write(the_host: Host) -> None:
    logs = list((the_host.folder / "state").rglob("audit*"))
    assert logs
    for path in logs:
        found = path.stat()
        assert (found.st_uid, found.st_mode & 0o077) == (0, 0), path


def test_t8_many_users_of_one_name(alice: Person) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(create(alice)[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201] + [409] * 11

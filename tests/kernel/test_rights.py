# SPDX-License-Identifier: Apache-2.0
"""Every route × who asks × whose things, by real HTTP over a real socket, against the table of `tenant/check.py`.

The kernel tells who connects; handlers are replaced by one that answers that it was reached.  Needs root, to connect as
somebody else.
"""

import asyncio
import json
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from api_double import serving
from insula.api.call import Api, Call, answer
from insula.api.routes import ROUTES, Route
from insula.model.errors import Denied, NotFound
from insula.model.grant import Action, Kind, Principal, Role
from insula.model.users import Origin, TokenRecord, UserRecord
from insula.tenant import identity
from insula.tenant.check import SCOPES, check
from insula.tenant.idmap import FIRST_UID

REACHED = "reached"
FIRST = 64_800
TENANTS = ("", "web", "elsewhere", "*")
DEADLINE_S = 120.0


class Caller(NamedTuple):
    """Who asks: by uid, or by uid and token."""

    words: str
    uid: int
    principal: Principal
    token: str = ""


async def reached(_call: Call) -> web.StreamResponse:
    return answer({"at": REACHED})


STUBBED = tuple(replace(route, handler=reached) for route in ROUTES)


class Dialer:
    """A process that connects in the name of any uid: in this one all threads would change with it."""

    def __init__(self) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            self._end.close()
            self._serve(theirs)
        theirs.close()

    def _serve(self, end: socket.socket) -> None:
        try:
            while order := end.recv(4096):
                uid, path = json.loads(order)
                connection = socket.socket(socket.AF_UNIX)
                os.setresuid(uid, uid, 0)
                connection.connect(path)
                os.setresuid(0, 0, 0)
                socket.send_fds(end, [b"."], [connection.fileno()])
                connection.close()
        finally:
            os._exit(0)

    def dial(self, path: Path, uid: int) -> socket.socket:
        with self._lock:
            self._end.send(json.dumps([uid, str(path)]).encode())
            _, (descriptor,), _, _ = socket.recv_fds(self._end, 1, 1)
        connection = socket.socket(fileno=descriptor)
        connection.settimeout(DEADLINE_S)
        return connection

    def close(self) -> None:
        self._end.close()
        os.waitpid(self._pid, 0)


@pytest.fixture(scope="module", autouse=True)
def dialer() -> Iterator[Dialer]:
    global DIAL  # noqa: PLW0603 (one process for the module, started before any thread)
    made = Dialer()
    DIAL = made.dial
    yield made
    made.close()


DIAL: Callable[[Path, int], socket.socket]


def ask(path: Path, caller: Caller, *, method: str, target: str) -> tuple[int, str]:
    """Send a request in the name of a uid.  Returns: status, and what was reached or the error's code and message."""
    connection = DIAL(path, caller.uid)
    bearer = f"Authorization: Bearer {caller.token}\r\n" if caller.token else ""
    connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{bearer}\r\n".encode())
    with connection:
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    words = json.loads(body)
    found = words["at"] if "at" in words else f"{words['error']['code']}: {words['error']['message']}"
    return int(head.split()[1]), found


def expected(principal: Principal, action: Action, *, tenant: str) -> str:
    try:
        check(principal, action, target_tenant=tenant)
    except NotFound:
        return "not_found"
    except Denied as error:
        return error.code
    return REACHED


def people(api: Api) -> list[Caller]:
    """Make a user of each role, known by its uid, and for the strongest one a token of each scope."""
    callers = [Caller("root", 0, Principal(name="root", uid=0, role=Role.ADMIN))]
    for number, role in enumerate(Role):
        uid = FIRST + number
        record = UserRecord(
            name=f"uid{uid}", origin=Origin.UNIX, tenant="web", role=role, number=uid, created_at=1.0
        )
        api.store.save_user(record)
        callers.append(Caller(role.value, uid, Principal(name=record.name, tenant="web", role=role, uid=uid)))
    for role in (Role.USER, Role.ADMIN):
        owner = next(each for each in callers if each.words == role.value)
        for scope in sorted(SCOPES):
            callers.append(token_of(api, owner, scope=scope))
    return callers


def token_of(api: Api, owner: Caller, *, scope: Action) -> Caller:
    token_id, text, digest = identity.new_token()
    record = TokenRecord(
        id=token_id, owner=owner.principal.name, uid=owner.uid, tenant="web", scopes=(scope,), expires_at=4e9
    )
    api.store.save_api_token(record, digest=digest, now=1.0)
    principal = replace(owner.principal, kind=Kind.TOKEN, scopes=frozenset({scope}), token=token_id)
    # Shown by another user's connection: the token speaks, not who carries it.
    return Caller(f"{owner.words}'s token for {scope.value}", FIRST + 99, principal, text)


def targets(route: Route) -> str:
    return route.path.replace("{ref:.+}", "x").replace("{ref}", "x").replace("{name}", "x")


def run(folder: Path, test: Callable[[Api, Path], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), serving(folder, routes=STUBBED) as (api, path):
            path.chmod(0o666)
            await test(api, path)

    asyncio.run(main())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every uid may enter."""
    with tempfile.TemporaryDirectory(prefix="insula-test-rights-", dir="/var/tmp") as made:
        Path(made).chmod(0o711)
        yield Path(made)


def test_each_route_lets_in_exactly_whom_the_table_lets_in(folder: Path) -> None:
    async def walk(api: Api, path: Path) -> None:
        wrong, count = [], 0
        for caller in people(api):
            for route in STUBBED:
                for tenant in TENANTS:
                    target = targets(route) + (f"?tenant={tenant}" if tenant else "")
                    status, found = await asyncio.to_thread(
                        ask, path, caller, method=route.method, target=target
                    )
                    wanted = expected(caller.principal, route.action, tenant=tenant)
                    count += 1
                    if found.partition(":")[0] != wanted or (status == 200) != (wanted == REACHED):
                        wrong.append(f"{caller.words} {route.method} {target}: {found}, not {wanted}")
        assert not wrong, "\n".join(wrong[:20])
        assert count == len(STUBBED) * len(TENANTS) * (5 + 2 * len(SCOPES))

    run(folder, walk)


def test_a_tenant_that_is_none_of_ones_business_is_refused_as_one_that_is_not(folder: Path) -> None:
    async def compare(api: Api, path: Path) -> None:
        user = next(each for each in people(api) if each.words == "user")
        said = set()
        for tenant in ("elsewhere", "nowhere"):
            status, found = await asyncio.to_thread(
                ask, path, user, method="GET", target=f"/v1/containers?tenant={tenant}"
            )
            said.add((status, found.replace(tenant, "…")))
        assert len(said) == 1

    run(folder, compare)


def test_what_is_not_believed_is_not_served(folder: Path) -> None:
    async def try_all(api: Api, path: Path) -> None:
        user = next(each for each in people(api) if each.words == "user")
        token = token_of(api, user, scope=Action.READ)

        async def get(caller: Caller) -> tuple[int, str]:
            return await asyncio.to_thread(ask, path, caller, method="GET", target="/v1/containers")

        assert await get(token) == (200, REACHED)
        in_container = token._replace(uid=FIRST_UID + 3)
        assert (await get(in_container))[0] == 403, "a container's uid, even with a token"
        for text in ("x", token.token[:-1], token.token.upper(), token.token + "x", " "):
            status, found = await get(token._replace(token=text))
            assert status == 401, (text, found)
            assert token.token[-20:] not in found
        assert await get(user._replace(token=token.token[:-1])) != (200, REACHED), (
            "no falling back to the uid"
        )
        in_url = await asyncio.to_thread(
            ask, path, Caller("", FIRST + 98, user.principal), method="GET",
            target=f"/v1/containers?tenant=web&access_token={token.token}",
        )  # fmt: skip
        assert in_url[0] == 404, "a token in a URL is none"

    run(folder, try_all)


def test_a_right_that_was_taken_away_is_gone_at_the_next_request_of_a_living_connection(folder: Path) -> None:
    async def take(api: Api, path: Path) -> None:
        user = next(each for each in people(api) if each.words == "user")
        token = token_of(api, user, scope=Action.READ)
        connections = []
        for caller in (user, token):
            connections.append((caller, DIAL(path, caller.uid)))

        def again(caller: Caller, connection: socket.socket) -> bytes:
            bearer = f"Authorization: Bearer {caller.token}\r\n" if caller.token else ""
            connection.sendall(f"GET /v1/containers HTTP/1.1\r\nHost: x\r\n{bearer}\r\n".encode())
            return connection.recv(65536)

        for each in connections:
            assert b" 200 " in await asyncio.to_thread(again, *each)
        api.store.delete_api_token(token.principal.token)
        assert b" 401 " in await asyncio.to_thread(again, *connections[1])
        record = api.store.get_user(user.principal.name)
        api.store.save_user(UserRecord(**{**_fields(record), "role": Role.VIEWER, "tenant": "other"}))
        assert b" 200 " in await asyncio.to_thread(again, *connections[0])
        api.store.save_user(UserRecord(**{**_fields(record), "expires_at": 1.0}))
        assert b" 403 " in await asyncio.to_thread(again, *connections[0])
        for _, connection in connections:
            connection.close()

    run(folder, take)


def _fields(record: UserRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}

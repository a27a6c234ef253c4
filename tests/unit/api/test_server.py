# SPDX-License-Identifier: Apache-2.0
"""The API over a real unix socket, with fake verbs: routes, bodies, errors, waiting, handed-over connections."""

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from api_double import api_of
from insula.api import errors as api_errors
from insula.api.call import HostIdentity
from insula.api.changes import Changes
from insula.api.routes import ROUTES
from insula.api.server import build
from insula.api.verbs import AttachRequest
from insula.model import errors
from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord, ImageConfig
from insula.model.spec import Spec
from insula.model.stream import EXIT, STDIN, STDOUT, FrameReader, frame
from insula.runtime.store import Store
from insula.tenant.audit import Audit
from waiting import DEADLINE_S


class FakeVerbs:
    """Remembers calls; `attach` echoes frames from a thread, as the spawner does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uploaded = b""

    def create(self, grant: Any, spec: Spec) -> ContainerRecord:
        if spec.image == "bug":
            raise ZeroDivisionError
        record = ContainerRecord(
            id="a" * 64, name=spec.name, tenant=grant.tenant, spec=spec, image="i", layers=(), config=ImageConfig(),
            status=Status.RUNNING, uid_base=0, created_at=1.0,
        )  # fmt: skip
        self.store.add_container(record)
        return record

    def attach(self, grant: Any, ref: str, *, attach: AttachRequest) -> None:
        self.store.find_container(grant.tenant, ref)
        connection = socket.socket(fileno=os.dup(attach.fd))
        connection.setblocking(True)
        threading.Thread(target=self._echo, args=(connection, attach), daemon=True).start()

    def _echo(self, connection: socket.socket, attach: AttachRequest) -> None:
        with connection:
            connection.sendall(attach.preamble)
            reader = FrameReader()
            while data := connection.recv(65536):
                for kind, payload in reader.feed(data):
                    assert kind == STDIN
                    connection.sendall(
                        frame(STDOUT, payload) if payload else frame(EXIT, b'{"exit_code": 7}')
                    )

    def write_archive(self, grant: Any, ref: str, *, path: str, source: Any) -> None:
        self.uploaded = source.read()

    def stat_path(self, grant: Any, ref: str, *, path: str) -> dict[str, str]:
        return {"name": "naïve 😀"}

    def read_archive(self, grant: Any, ref: str, *, path: str, output: Any) -> None:
        if path == "/srv/breaks":
            raise errors.PathEscapes(f"cannot read `{path}`")
        output.write(b"x" * 3_000_000)
        if path == "/breaks":
            raise errors.PathEscapes("no")


@contextlib.asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, FakeVerbs, Path]]:
    store = Store(tmp_path / "db.sqlite")
    changes = Changes(asyncio.get_running_loop())
    store.subscribe(changes.tell)
    verbs, audit = FakeVerbs(store), Audit(tmp_path / "audit.log")
    identity = HostIdentity(name="alpha", version="1", cgroups="v2", criu="4", state_folder=str(tmp_path))
    api = api_of(tmp_path, identity=identity, store=store, verbs=verbs, changes=changes, audit=audit)
    runner = build(api)
    await runner.setup()
    path = tmp_path / "api.sock"
    await web.UnixSite(runner, str(path)).start()
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession("http://insula", connector=connector) as session:
        yield session, verbs, path
    await runner.cleanup()
    api.close()
    audit.close()
    store.close()


def run(test: Callable[..., Any], tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as parts:
            await test(*parts)

    asyncio.run(main())


def test_an_error_is_told_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[default]\nhide_paths = ["/srv"]\n')

    async def test(session: aiohttp.ClientSession, verbs: FakeVerbs, path: Path) -> None:
        async with session.get("/v1/containers/c/archive", params={"path": "/srv/breaks"}) as response:
            said = await response.json()
        assert said["error"]["message"] == "cannot read `/srv/[hidden]`"

    run(test, tmp_path)


def documented() -> set[tuple[str, str]]:
    """Each method and path of the table in docs/api.md; `…` and a second path of a line begin as the one before."""
    found: set[tuple[str, str]] = set()
    for row in Path("docs/api.md").read_text().splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) != 3 or not re.match(r"(GET|POST|PUT|PATCH|DELETE)\b", cells[0]):
            continue
        item = path = ""
        for group in cells[0].replace("(cancel)", "").split(" · "):
            words = [word.strip(",").split("?")[0] for word in group.split()]
            named = [word for word in words if word.startswith(("/", "…"))]
            for word in named or [item]:
                if word.startswith("…"):
                    path = item + word[1:]
                elif word.startswith("/v1"):
                    path = word
                else:
                    path = path.rsplit("/", 1)[0] + word
                item = path if path.endswith("}") else item
                for method in (word for word in words if word.isupper()):
                    found.add((method, re.sub(r"{[^}]*}", "{}", path if named else item)))
    return found


def test_every_documented_route_exists_and_no_other() -> None:
    known = {(route.method, re.sub(r"{[^}]*}", "{}", route.path)) for route in ROUTES}
    assert documented() == known


def test_every_error_has_a_status_of_its_own_kind() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.InsulaError)
    ]
    for kind in kinds:
        status = api_errors.status_of(kind("x"))
        assert 400 <= status < 600
        direct = kind is errors.InsulaError or errors.InsulaError in kind.__bases__
        assert not direct or kind in api_errors.STATUSES, f"{kind.__name__} has no line in STATUSES"
    assert api_errors.status_of(errors.ContainerNotFound("x")) == 404
    assert api_errors.status_of(errors.NameTaken("x")) == 409


def test_bodies_are_read_strictly_and_errors_are_json(tmp_path: Path) -> None:
    async def test(session: aiohttp.ClientSession, _verbs: FakeVerbs, _path: Path) -> None:
        for body, code, word in (
            (
                '{"image": "host", "memory_bytes": "x"}',
                "invalid_spec",
                "cannot use `memory_bytes`: expected `int | null`, got `str`",
            ),
            ('{"image": "host", "typo": 1}', "invalid_spec", "typo"),
            ("{", "bad_request", "body"),
            ('{"image": "bug"}', "internal", "internal error"),
        ):
            async with session.post("/v1/containers", data=body) as answer:
                error = (await answer.json())["error"]
                assert (error["code"], word in error["message"]) == (code, True), error
        async with session.get("/v1/nothing") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")
        async with session.post("/v1/containers", data=io.BytesIO(b" " * (2 << 20))) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "bad_request")
        async with session.get("/v1/containers?al=1") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "bad_request")

    run(test, tmp_path)
    audit = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert {line["result"] for line in audit} == {"invalid_spec", "bad_request", "internal", "not_found"}


def test_wait_answers_when_the_container_has_ended(tmp_path: Path) -> None:
    async def test(session: aiohttp.ClientSession, verbs: FakeVerbs, _path: Path) -> None:
        async with session.post("/v1/containers", json={"image": "host", "name": "web"}) as answer:
            assert (answer.status, await answer.json()) == (
                201,
                {"id": "a" * 64, "name": "web", "warnings": []},
            )
        async with session.get("/v1/containers") as answer:
            assert [record["name"] for record in await answer.json()] == ["web"]

        async def wait(condition: str) -> dict[str, object]:
            async with session.get(f"/v1/containers/web/wait?condition={condition}") as answer:
                return dict(await answer.json())

        waits = [asyncio.create_task(wait(condition)) for condition in ("exited", "removed")]
        change = verbs.store.change_container
        await asyncio.to_thread(change, "a" * 64, lambda old: replace(old, status=Status.EXITED, exit_code=3))
        assert await waits[0] == {"exit_code": 3, "error": ""}
        assert await wait("exited") == {"exit_code": 3, "error": ""}
        await asyncio.to_thread(verbs.store.delete_container, "a" * 64)
        result = await asyncio.gather(waits[1], return_exceptions=True)
        assert result == [{"exit_code": 3, "error": ""}]

    run(test, tmp_path)


def _attach(path: Path) -> tuple[bytes, list[tuple[int, bytes]]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        client.sendall(
            b"POST /v1/containers/web/attach?stdin HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: insula-stream\r\nContent-Length: 0\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        found: list[tuple[int, bytes]] = []
        reader = FrameReader()
        for words in (b"one", b"two" * 100_000, b""):
            client.sendall(frame(STDIN, words))
            while sum(len(data) for kind, data in found if kind == STDOUT) < len(words) or not found:
                found += reader.feed(client.recv(65536))
            if words == b"":
                while found[-1][0] != EXIT:
                    found += reader.feed(client.recv(65536))
        return head, found


def test_an_attached_connection_is_given_away_and_data_flows(tmp_path: Path) -> None:
    async def test(session: aiohttp.ClientSession, _verbs: FakeVerbs, path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        headers = {"Connection": "Upgrade", "Upgrade": "insula-stream"}
        async with session.post("/v1/containers/web/attach", headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "container_not_found")
        async with session.post("/v1/containers", json={"image": "host", "name": "web"}) as answer:
            assert answer.status == 201
        async with session.post("/v1/containers/web/attach") as answer:
            assert (await answer.json())["error"]["code"] == "bad_request"
        head, frames = await asyncio.to_thread(_attach, path)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"".join(data for kind, data in frames if kind == STDOUT) == b"one" + b"two" * 100_000
        assert frames[-1] == (EXIT, b'{"exit_code": 7}')
        # The echoing thread closes its end a little later.
        while len(os.listdir("/proc/self/fd")) > before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    run(test, tmp_path)


def test_archives_stream_both_ways_and_a_failure_cuts_the_answer(tmp_path: Path) -> None:
    async def test(session: aiohttp.ClientSession, verbs: FakeVerbs, _path: Path) -> None:
        data = os.urandom(5_000_000)
        async with session.put("/v1/containers/web/archive?path=/", data=io.BytesIO(data)) as answer:
            assert (answer.status, verbs.uploaded == data) == (204, True)
        async with session.get("/v1/containers/web/archive?path=/") as answer:
            assert json.loads(answer.headers["X-Insula-Path-Stat"]) == {"name": "naïve 😀"}
            assert len(await answer.read()) == 3_000_000
        with pytest.raises(aiohttp.ClientError):
            async with session.get("/v1/containers/web/archive?path=/breaks") as answer:
                await answer.read()

    run(test, tmp_path)

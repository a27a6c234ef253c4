# SPDX-License-Identifier: Apache-2.0
"""A relayed stream ends for the client when the program ends, whole, and is forgotten when either has gone."""

import asyncio
import json
import os
import queue
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from hosted import wait_until
from insula.api.deed import written_down
from insula.api.handover import HandedOver
from insula.api.relay import relay
from insula.daemon.pki import Pki
from insula.model.grant import Action
from insula.tenant.audit import Audit
from waiting import DEADLINE_S

TAIL = os.urandom(256 << 10)
"""More than the kernel takes of it from a server with SMALL_BUFFER."""
SMALL_BUFFER = 4096


@dataclass
class Relayed:
    """A server of relayed streams, over TLS or a Unix socket."""

    runner: web.AppRunner
    folder: Path
    tls: bool
    audit: Audit
    programs: "queue.Queue[socket.socket]" = field(default_factory=queue.Queue)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a client's connection and the program's end of its stream, once the client may speak."""
        client = self._secured() if self.tls else self._plain()
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        program = self.programs.get(timeout=DEADLINE_S)
        program.sendall(b"!")
        assert client.recv(1) == b"!"
        return client, program

    def _secured(self) -> socket.socket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection(self.runner.addresses[0][:2], timeout=DEADLINE_S))

    def _plain(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_S)
        client.connect(str(self.folder / "s"))
        return client

    async def answer(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        with written_down(request, Action.ENTER, audit=self.audit):
            await relay(_call(), self._give, transport=transport)
        return HandedOver()

    def _give(self, descriptor: int) -> None:
        program = socket.socket(fileno=os.dup(descriptor))
        program.settimeout(DEADLINE_S)
        self.programs.put(program)

    def wait_forgotten(self) -> None:
        """Wait until the server keeps no connection."""
        server = self.runner.server
        assert server is not None
        wait_until(
            lambda: not server.connections, what=lambda: f"{len(server.connections)} connections are kept"
        )


def _call() -> Any:
    return SimpleNamespace(run=asyncio.to_thread)


@asynccontextmanager
async def _relayed(folder: Path, *, tls: bool) -> AsyncIterator[Relayed]:
    application = web.Application()
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    relayed = Relayed(runner, folder, tls, Audit(folder / "audit.log"))
    application.router.add_get("/", relayed.answer)
    await runner.setup()
    if tls:
        context = Pki(folder, name="alpha").server_context()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    else:
        await web.UnixSite(runner, str(folder / "s")).start()
    try:
        yield relayed
    finally:
        await runner.cleanup()
        relayed.audit.close()


def run(test: Callable[[Relayed], object], folder: Path, *, tls: bool) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), _relayed(folder, tls=tls) as relayed:
            await asyncio.to_thread(test, relayed)

    asyncio.run(main())


def rest(connection: socket.socket) -> bytes:
    """Read to the end, within the deadline."""
    found = bytearray()
    while piece := connection.recv(65536):
        found += piece
    return bytes(found)


both = pytest.mark.parametrize("tls", [True, False], ids=["tls", "unix"])


@both
def test_the_client_reads_the_end_when_the_program_ends(tmp_path: Path, tls: bool) -> None:
    def test(relayed: Relayed) -> None:
        client, program = relayed.connect()
        with client, program:
            client.sendall(b"question")
            assert program.recv(100) == b"question"
            program.sendall(b"answer")
            assert client.recv(100) == b"answer"
            program.close()
            assert rest(client) == b""

    run(test, tmp_path, tls=tls)


@both
def test_a_connection_whose_client_ends_first_is_forgotten(tmp_path: Path, tls: bool) -> None:
    def test(relayed: Relayed) -> None:
        for _ in range(20):
            client, program = relayed.connect()
            with program:
                client.close()
                assert rest(program) == b""
        relayed.wait_forgotten()

    run(test, tmp_path, tls=tls)
    lines = map(json.loads, (tmp_path / "audit.log").read_text().splitlines())
    source = "127.0.0.1" if tls else "unix"
    assert [(each["result"], each["from"]) for each in lines] == [("ok", source)] * 20


@both
def test_a_connection_whose_program_ends_first_is_forgotten(tmp_path: Path, tls: bool) -> None:
    def test(relayed: Relayed) -> None:
        client, program = relayed.connect()
        program.close()
        with client:
            assert rest(client) == b""
        relayed.wait_forgotten()

    run(test, tmp_path, tls=tls)


@both
def test_what_is_still_on_its_way_when_the_program_ends_arrives_whole(tmp_path: Path, tls: bool) -> None:
    def test(relayed: Relayed) -> None:
        client, program = relayed.connect()
        with client:
            with program:
                program.sendall(TAIL)
            assert rest(client) == TAIL

    run(test, tmp_path, tls=tls)


@both
def test_what_is_still_on_its_way_when_the_client_ends_arrives_whole(tmp_path: Path, tls: bool) -> None:
    def test(relayed: Relayed) -> None:
        client, program = relayed.connect()
        with program:
            client.sendall(TAIL)
            client.close()
            assert rest(program) == TAIL

    run(test, tmp_path, tls=tls)

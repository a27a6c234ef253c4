# SPDX-License-Identifier: Apache-2.0
"""A port for other hosts as tests need it: served in this process, with a paired host that comes through it."""

import asyncio
import json
import secrets
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from insula.api.guests import Guests
from insula.daemon.arrivals import Arrivals
from insula.daemon.door import HostDoor
from insula.daemon.listen import open_listeners
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.migrate.wire import Socket, Wire
from insula.model.errors import MigrationFailed
from insula.model.grant import Grant
from insula.model.migration import Held, Restore
from insula.model.record import HostRecord
from insula.runtime.store import Store
from insula.tenant.audit import Audit
from waiting import DEADLINE_S


@dataclass
class Doors:
    """One host with a door, and another one that knows it."""

    address: tuple[str, int]
    inside: Pki
    store: Store
    peers: PairedHosts
    target: HostRecord
    folder: Path
    served: list[str] = field(default_factory=list)
    guests: Guests = field(default_factory=Guests)

    def connect(self, *, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(self.address, timeout=DEADLINE_S, source_address=(source, 0))

    def open(self) -> Wire:
        return Wire(self.peers.open(self.target))

    def converses(self) -> bool:
        """Tell whether a paired host is served."""
        wire = self.open()
        wire.send(Restore())
        answer = wire.expect(Held)
        wire.close()
        return isinstance(answer, Held)

    def audit(self) -> list[tuple[str, str]]:
        lines = (self.folder / "audit.log").read_text().splitlines()
        return [(entry["who"], entry["result"]) for entry in map(json.loads, lines)]


def _serve(doors: Doors) -> Callable[[Grant, Socket], None]:
    def serve(grant: Grant, connection: Socket) -> None:
        doors.served.append(grant.principal.name)
        wire = Wire(connection)
        try:
            while True:
                wire.expect(Restore)
                wire.send(Held())
        except MigrationFailed:  # the client has hung up
            wire.close()

    return serve


async def _hello(_: web.Request) -> web.Response:
    return web.Response(text="http")


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[Doors]:
    inside, outside = Pki(folder / "in", name="alpha"), Pki(folder / "out", name="beta")
    store, other = Store(folder / "in.sqlite"), Store(folder / "out.sqlite")
    listeners = open_listeners("127.0.0.1:0")
    where = listeners[0].getsockname()
    outside.trust(inside.certificate_pem)
    inside.trust(outside.certificate_pem)
    store.save_host(
        HostRecord(name="beta", address="127.0.0.1:1", fingerprint=outside.fingerprint, added_at=1.0)
    )
    target = HostRecord(name="alpha", address=f"127.0.0.1:{where[1]}", fingerprint=inside.fingerprint)
    doors = Doors(where, inside, store, PairedHosts(other, outside), target, folder)
    audit = Audit(folder / "audit.log")
    application = web.Application()
    application.router.add_get("/", _hello)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    context = inside.server_context()
    coming = Arrivals(context, find_host=store.find_host_by_fingerprint, audit=audit, serve=_serve(doors))
    door = HostDoor(listeners, runner=runner, context=context, arrivals=coming, guests=doors.guests)
    try:
        yield doors
    finally:
        await door.close()
        await runner.cleanup()
        audit.close()
        store.close()
        other.close()
    assert not [each for each in threading.enumerate() if each.name in ("migration in", "doorkeeper")]


def run(test: Callable[[Doors], object], folder: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * DEADLINE_S), _opened(folder) as doors:
            await asyncio.to_thread(test, doors)

    asyncio.run(main())


def stranger(folder: Path) -> Pki:
    return Pki(folder / f"stranger{secrets.token_hex(2)}", name="stranger")


def secured(doors: Doors, context: ssl.SSLContext, *, alpn: str = "") -> ssl.SSLSocket:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    return context.wrap_socket(doors.connect())


def http(doors: Doors) -> bool:
    with secured(doors, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := stream.recv(4096):
            answer += piece
    return answer.endswith(b"http")


def ends(connection: socket.socket) -> bool:
    """Tell whether the other side hangs up, within the deadline."""
    connection.settimeout(DEADLINE_S)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True

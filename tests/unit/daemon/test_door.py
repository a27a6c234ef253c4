# SPDX-License-Identifier: Apache-2.0
"""The port for other hosts: HTTP and migrations side by side, whatever else knocks."""

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from insula.api.guests import Guests
from insula.daemon import arrivals, listen, strangers
from insula.daemon.arrivals import Arrivals
from insula.daemon.door import HostDoor
from insula.daemon.listen import open_listeners
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.migrate.wire import Socket, Wire
from insula.model.errors import BadRequest, Denied, MigrationFailed, TargetRefused, TargetUnreachable
from insula.model.grant import Grant
from insula.model.migration import PROTOCOL, Held, Restore
from insula.model.record import HostRecord
from insula.runtime.store import Store
from insula.tenant.audit import Audit

DEADLINE_S = 20.0


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

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=DEADLINE_S)

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
async def _doors(folder: Path) -> AsyncIterator[Doors]:
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
        async with asyncio.timeout(60), _doors(folder) as doors:
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


def test_both_protocols_are_served_on_one_port(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        assert doors.converses()
        assert http(doors)
        assert doors.served == ["beta"]
        assert doors.audit() == [("beta", "ok")]

    run(test, tmp_path)


def test_a_host_that_is_not_paired_any_more_is_denied(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        doors.store.delete_host("beta")
        with pytest.raises(Denied, match="peer"):
            doors.open()
        assert doors.audit() == [("", "denied")]
        assert not doors.served

    run(test, tmp_path)


def test_a_certificate_that_was_never_known_is_denied(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        pki = stranger(tmp_path)
        pki.trust(doors.inside.certificate_pem)
        store = Store(tmp_path / "stranger.sqlite")
        with pytest.raises(Denied, match="does not know"):
            PairedHosts(store, pki).open(doors.target)
        store.close()
        assert not doors.served

    run(test, tmp_path)


def test_nobody_is_denied_a_migration(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        stream = secured(doors, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), alpn=PROTOCOL)
        with pytest.raises(Denied, match="unknown peer"):
            Wire(stream).receive()
        stream.close()
        assert doors.audit() == [("", "denied")]

    run(test, tmp_path)


def test_a_door_that_speaks_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def test(doors: Doors) -> None:
        monkeypatch.setattr("insula.daemon.peers.PROTOCOL", "insula-migration/2")
        with pytest.raises(TargetRefused, match="does not speak"):
            doors.open()

    run(test, tmp_path)


def test_nobody_listens_is_unreachable(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(TargetUnreachable):
            doors.peers.open(HostRecord(name="x", address=address, fingerprint=doors.target.fingerprint))
        with pytest.raises(BadRequest, match="cannot listen"):
            open_listeners(doors.target.address)

    run(test, tmp_path)


GARBAGE = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0" * 100,
    b"\x16\x03\x01\x00\x10" + b"\xff" * 16,  # a record, but no hello
    b"\x16\x03\x01\xff\xff" + b"\x01" * 100,  # a record longer than any
    b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",  # a hello that ends early
    secrets.token_bytes(4096),
)


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_hung_up_on_and_others_are_served(tmp_path: Path, data: bytes) -> None:
    def test(doors: Doors) -> None:
        with doors.connect() as connection:
            connection.sendall(data)
            assert ends(connection)
        assert doors.converses()
        assert http(doors)

    run(test, tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x01\x00\x01"])
def test_a_silent_connection_ends_in_time_and_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(listen, "HELLO_S", 0.3)

    def test(doors: Doors) -> None:
        with doors.connect() as connection:
            if data:
                connection.sendall(data)
            assert doors.converses()
            assert ends(connection)

    run(test, tmp_path)


def test_a_hello_that_comes_byte_by_byte_is_understood(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([PROTOCOL])
        session = context.wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        with doors.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in outgoing.read():
                connection.sendall(bytes([byte]))
            incoming.write(connection.recv(1 << 16))
            session.do_handshake()
            assert session.selected_alpn_protocol() == PROTOCOL

    run(test, tmp_path)


def test_a_slow_handshake_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "HANDSHAKE_S", 0.3)

    def test(doors: Doors) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols([PROTOCOL])
        session = context.wrap_bio(incoming, outgoing, server_hostname="x")
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        with doors.connect() as connection:
            connection.sendall(outgoing.read())
            assert doors.converses()
            assert ends(connection)

    run(test, tmp_path)


def test_too_many_at_once_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_SERVED", 2)

    def test(doors: Doors) -> None:
        held = [doors.open(), doors.open()]
        with pytest.raises(TargetRefused, match="too many"):
            doors.open()
        for wire in held:
            wire.close()
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                assert doors.converses()
                break
            except TargetRefused:
                continue
        else:
            pytest.fail("the places were not given back")

    run(test, tmp_path)


def test_silent_ones_beyond_the_limit_push_out_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "MAX_SILENT", 4)

    def test(doors: Doors) -> None:
        knocking = [doors.connect() for _ in range(10)]
        assert doors.converses()
        assert all(ends(each) for each in knocking[:5])
        for each in knocking:
            each.close()

    run(test, tmp_path)


def silent(doors: Doors) -> ssl.SSLSocket:
    """A connection that has shaken hands and asks nothing."""
    return secured(doors, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def test_who_shakes_hands_and_asks_nothing_is_cut_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "STRANGER_S", 0.3)

    def test(doors: Doors) -> None:
        with silent(doors) as connection:
            assert ends(connection)

    run(test, tmp_path)


@pytest.mark.parametrize("bound", ["MAX_OF_ADDRESS", "MAX_STRANGERS"])
def test_strangers_beyond_the_limit_push_out_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(strangers, bound, 4)

    def test(doors: Doors) -> None:
        knocking = [silent(doors) for _ in range(10)]
        assert http(doors)
        assert all(ends(each) for each in knocking[:6])
        for each in knocking:
            each.close()

    run(test, tmp_path)


def test_a_guest_is_not_pushed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "STRANGER_S", 0.3)
    monkeypatch.setattr(Guests, "is_guest", lambda _self, _transport: True)

    def test(doors: Doors) -> None:
        with silent(doors) as guest, contextlib.ExitStack() as held:
            for _ in range(strangers.MAX_OF_ADDRESS + 1):
                held.enter_context(silent(doors))
            guest.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert guest.recv(4096).startswith(b"HTTP/1.1 200")

    run(test, tmp_path)


def test_a_hundred_at_once(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        silent = [doors.connect() for _ in range(100)]
        answers: list[bool] = []

        def ask() -> None:
            try:
                answers.append(doors.converses())
            except TargetRefused:
                answers.append(True)  # told to come again

        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 100
        assert http(doors)
        for each in silent:
            each.close()

    run(test, tmp_path)


def test_closing_the_door_ends_all(tmp_path: Path) -> None:
    held: list[Wire] = []

    def test(doors: Doors) -> None:
        held.append(doors.open())
        held[0].send(Restore())
        held[0].expect(Held)

    run(test, tmp_path)
    with pytest.raises(MigrationFailed):
        held[0].receive()
    held[0].close()


def test_a_round_trip_is_not_held_up_by_nagle(tmp_path: Path) -> None:
    def test(doors: Doors) -> None:
        connection = doors.peers.open(doors.target)
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()

    run(test, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""The port for other hosts: HTTP and migrations side by side, whatever else knocks."""

import contextlib
import secrets
import socket
import ssl
from pathlib import Path

import pytest

from doors import Doors, ends, http, run, secured, stranger
from insula.api.guests import Guests
from insula.daemon import listen, strangers
from insula.daemon.listen import open_listeners
from insula.daemon.peers import PairedHosts
from insula.migrate.wire import Wire
from insula.model.errors import BadRequest, Denied, MigrationFailed, TargetRefused, TargetUnreachable
from insula.model.migration import PROTOCOL, Held, Restore
from insula.model.record import HostRecord
from insula.runtime.store import Store


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

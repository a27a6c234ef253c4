# SPDX-License-Identifier: Apache-2.0
"""A stranger on the way between two hosts: passes on what the one says to the other, cuts it at a byte, or lies.

To lie it needs the keys of both hosts, which a test has: so it is, for each of the two, the other host gone bad.
"""

import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from demo.hosts import CLIENT_HOST, CONTROL
from demo.hosts import PORT as DOOR

from insula.daemon.pki import Pki
from insula.kernel.netlink import namespace_entered
from insula.migrate.wire import HEADER
from insula.model.migration import PROTOCOL, Kind
from insula.model.record import HostRecord
from two_hosts import Pair

ADDRESS = f"{CONTROL}.{CLIENT_HOST}:{DOOR}"
TO_TARGET, TO_SOURCE = "to target", "to source"
PIECE = 1 << 16
TRY_S = 20.0


@dataclass(frozen=True)
class Frame:
    """One frame of the wire.  claimed: a length that it has not."""

    kind: int
    payload: bytes
    claimed: int | None = None

    @property
    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.payload)) if self.kind == Kind.MESSAGE else {}

    @property
    def name(self) -> str:
        """Of its message; empty for a piece of a stream."""
        return str(self.message.get("type", ""))

    def changed(self, **fields: object) -> "Frame":
        """Return the message with other fields."""
        return Frame(self.kind, json.dumps({**self.message, **fields}).encode())

    def encode(self) -> bytes:
        length = len(self.payload) if self.claimed is None else self.claimed
        return HEADER.pack(self.kind, length) + self.payload


Lie = Callable[[str, Frame], list[Frame]]
"""Direction and frame → what is passed on instead."""


@dataclass
class Relay:
    """Stands where the first host believes the second."""

    pair: Pair
    source: str = "alpha"
    target: str = "beta"
    lie: Lie | None = None
    cut_after: dict[str, int] = field(default_factory=dict)
    """Bytes of each direction after which the connection is cut."""
    passed: dict[str, int] = field(default_factory=dict)
    """Bytes of each direction of the last connection."""
    shows: str = ""
    """The host whose certificate it shows, if not the target's own."""

    def __post_init__(self) -> None:
        with namespace_entered(self.pair.world.outside):
            self._listener = socket.create_server(("", DOOR), backlog=16)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def be_honest(self) -> None:
        self.lie, self.shows = None, ""
        self.cut_after = {}

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError), near:
            if self.lie or self.shows:
                self._serve_frames(near)
            else:
                self._serve_bytes(near)

    # -- bytes

    def _serve_bytes(self, near: socket.socket) -> None:
        self.passed = {TO_TARGET: 0, TO_SOURCE: 0}
        with namespace_entered(self.pair.world.outside):
            far = socket.create_connection((self.pair.host(self.target).address, DOOR), timeout=TRY_S)
        with far:
            far.settimeout(None)
            back = threading.Thread(target=self._pump, args=(far, near, TO_SOURCE), daemon=True)
            back.start()
            self._pump(near, far, TO_TARGET)
            back.join()

    def _pump(self, one: socket.socket, other: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while piece := one.recv(PIECE):
                left = self.cut_after.get(direction, 1 << 62) - self.passed[direction]
                other.sendall(piece[:left])
                self.passed[direction] += len(piece[:left])
                if left <= len(piece):
                    one.shutdown(socket.SHUT_RDWR)
                    break
            other.shutdown(socket.SHUT_RDWR if direction in self.cut_after else socket.SHUT_WR)

    # -- frames

    def pki(self, name: str) -> Pki:
        return Pki(self.pair.host(name).folder / "state" / "pki", name=name)

    def open_target(self, pki: Pki | None = None) -> ssl.SSLSocket:
        """Connect to the target, as the source or as who has those keys."""
        host = HostRecord(
            name=self.target,
            address=f"{self.pair.host(self.target).address}:{DOOR}",
            fingerprint=self.pki(self.target).fingerprint,
            added_at=0.0,
        )
        with namespace_entered(self.pair.world.outside):
            return (pki or self.pki(self.source)).open_stream(host, protocol=PROTOCOL)

    def _serve_frames(self, connection: socket.socket) -> None:
        context = self.pki(self.shows or self.target).server_context()
        with context.wrap_socket(connection, server_side=True) as near:
            if near.selected_alpn_protocol() != PROTOCOL:
                return
            with self.open_target() as far:
                far.settimeout(TRY_S)
                self._pass_on(near, far)

    def _pass_on(self, near: ssl.SSLSocket, far: ssl.SSLSocket) -> None:
        # One thread: no two may use one TLS connection, not even in two directions.
        ways = {near: (far, TO_TARGET), far: (near, TO_SOURCE)}
        while ways:
            ready = [each for each in ways if each.pending()] or select.select(list(ways), [], [], TRY_S)[0]
            if not ready:
                return
            for one in ready:
                other, direction = ways[one]
                frame = read_frame(one)
                if frame is None:
                    # Who has read the end of a TLS connection cannot write to it any more: this way is over, too.
                    # Not SSLSocket's own, which could not read any more.
                    del ways[one]
                    for each in (one, other):
                        socket.socket.shutdown(each, socket.SHUT_WR)
                    while other in ways and _exactly(other, PIECE):
                        pass
                    return
                for each in self.lie(direction, frame) if self.lie else [frame]:
                    other.sendall(each.encode())


def read_frame(connection: ssl.SSLSocket) -> Frame | None:
    """Read a frame; None at the end."""
    header = _exactly(connection, HEADER.size)
    if len(header) < HEADER.size:
        return None
    kind, length = HEADER.unpack(header)
    return Frame(kind, _exactly(connection, length))


def _exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return bytes(found)


@contextmanager
def between(pair: Pair) -> Iterator[Relay]:
    """Have alpha know beta by the stranger's address."""
    relay = Relay(pair)
    try:
        token = pair.client("beta").call("POST", "/v1/hosts/token")["token"]
        pair.client("alpha").call(
            "POST", "/v1/hosts", body={"name": "beta", "address": ADDRESS, "token": token}
        )
        yield relay
    finally:
        relay.close()

# SPDX-License-Identifier: Apache-2.0
"""Frames between two hosts: messages and streams of bytes over a connection that is authenticated already.

A frame is `>BI`: kind and length, then the payload of at most MAX_PAYLOAD bytes.  Blocking; one thread reads, frames of several
may be sent; every wait has a deadline.
"""

import contextlib
import io
import logging
import math
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import msgspec

from insula.image.zstd import Unpacker
from insula.migrate.squeeze import Link, Squeezer
from insula.model.errors import InsulaError, MigrationFailed, ProtocolError, TargetRefused, from_code
from insula.model.migration import Kind, Layer, Message, Refuse, decode, encode
from insula.model.record import HostRecord

LOG = logging.getLogger(__name__)

HEADER = struct.Struct(">BI")
_COUNT = struct.Struct(">I")
MAX_PAYLOAD = 1 << 20
PIECE_BYTES = 512 << 10
JOINED_BYTES = 16 << 10
"""Up to here header and payload are joined into one packet; above, a copy costs more than a second call."""
ZSTD = "zstd"
"""The compression that `Wire.compress` does."""
DRAINED_BYTES = 64 << 10
DRAIN_SECONDS = 5.0
PEER_SECONDS = 60.0
"""No answer or byte from the other side for that long: it is gone."""

SILENCE_SECONDS = 8
"""A peer whose kernel does not answer, or that takes nothing, for that long is gone: what a cut cable costs in frozen time.

While layers travel, when nothing is frozen yet, it is PEER_SECONDS: a target that writes a layer to a slow disk reads nothing
meanwhile, and TCP_USER_TIMEOUT counts a closed window as silence.
"""

_LEAST_SECONDS = 0.001
"""Zero would not wait at all, not even for what is here already."""

_M = TypeVar("_M")


class Socket(Protocol):
    """What is needed of a connection: a plain socket or a TLS one."""

    def sendall(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...
    def close(self) -> None: ...


class Options(Protocol):
    """The options of a TCP socket."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


class Peers(Protocol):
    """How a paired host is reached."""

    def find(self, name: str) -> HostRecord: ...
    def open(self, host: HostRecord) -> Socket: ...


def tune(connection: Options) -> None:
    """Have the kernel send at once, and end a connection whose other side vanished.

    Without TCP_NODELAY a short message after another waits for the peer's delayed acknowledgement, up to 40 ms.
    Source: tcp(7).
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 2),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, SILENCE_SECONDS // 2 - 1),
        (socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Wire:
    """One side of a migration's connection."""

    def __init__(self, connection: Socket) -> None:
        self._connection = connection
        self._is_patient = False
        self._has_refused = False
        self._sending = threading.Lock()
        self._link = Link()
        self._squeezer: Squeezer | None = None
        self._unpacker: Unpacker | None = None
        self.sent_bytes = 0
        self.raw_bytes = 0
        """As `sent_bytes`, but what was compressed counts as it was before."""
        self.has_heard = False
        """Whether the peer has said anything at all."""
        connection.settimeout(PEER_SECONDS)

    @property
    def is_compressing(self) -> bool:
        """Whether what pays is compressed."""
        return self._squeezer is not None

    def compress(self) -> None:
        """Compress from now on what pays; the peer has said that it takes that."""
        self._squeezer = Squeezer(self._link)

    def send(self, message: Message) -> None:
        """Send a message.  Raises: MigrationFailed if the peer is gone."""
        if isinstance(message, Layer) and not self._is_patient:
            self._wait_for_peer(PEER_SECONDS)
        self._frame(Kind.MESSAGE, encode(message))

    def send_data(self, data: bytes | memoryview) -> None:
        """Send a piece of a stream."""
        for start in range(0, len(data), MAX_PAYLOAD):
            self._frame(Kind.DATA, data[start : start + MAX_PAYLOAD])

    def send_stream(self, chunks: Iterable[bytes]) -> int:
        """Send a whole stream, gathered into pieces, and its end.  Returns: its bytes."""
        gathered, total = bytearray(), 0
        for chunk in chunks:
            total += len(chunk)
            if not gathered and PIECE_BYTES <= len(chunk) <= MAX_PAYLOAD:
                self._send_piece(chunk)  # as it is, without a copy
                continue
            gathered += chunk
            if len(gathered) >= PIECE_BYTES:
                self._send_piece(gathered)
                gathered = bytearray()
        if gathered:
            self._send_piece(gathered)
        self.end_stream()
        return total

    def _send_piece(self, piece: bytes | bytearray) -> None:
        if piece[0] == 0 and piece == _ZEROS[: len(piece)]:
            self._frame(Kind.ZEROS, _COUNT.pack(len(piece)))
            return
        for start in range(0, len(piece), MAX_PAYLOAD):
            part = memoryview(piece)[start : start + MAX_PAYLOAD]
            packed = self._squeezer.pack(part) if self._squeezer is not None else None
            if packed is None:
                self._frame(Kind.DATA, part)
            else:
                self._frame(Kind.PACKED, packed)
                self.raw_bytes += len(part) - len(packed)

    def end_stream(self) -> None:
        self._frame(Kind.END, b"")

    def receive(self, *, within_s: float | None = None) -> Message:
        """Receive a message; a `Refuse` is raised as the error that it names.

        within_s: seconds until the whole of it must be here; None: PEER_SECONDS between two bytes.
        Raises: MigrationFailed if the peer is gone; ProtocolError for what is no message.
        """
        kind, payload = self._receive_frame() if within_s is None else self._receive_frame_within(within_s)
        if kind != Kind.MESSAGE:
            raise ProtocolError("cannot read the peer's message: data where a message was due")
        try:
            message = decode(bytes(payload))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"cannot read the peer's message: {error}") from error
        if self._is_patient:
            # It has read all that was sent before its answer.
            self._wait_for_peer(SILENCE_SECONDS)
        if isinstance(message, Refuse):
            found = from_code(message.code, message.message, hint=message.hint)
            raise TargetRefused(message.message, hint=message.hint) if found.code == "internal" else found
        return message

    def expect(self, kind: type[_M]) -> _M:
        """Receive a message of one kind.  Raises: as `receive`."""
        message = self.receive()
        if not isinstance(message, kind):
            raise ProtocolError(f"cannot go on: the peer sent {type(message).__name__}, not {kind.__name__}")
        return message

    def receive_stream(self) -> Iterator[bytes | bytearray]:
        """Yield the pieces of a stream until its end; each is the caller's own."""
        while True:
            kind, payload = self._receive_frame()
            if kind == Kind.END:
                return
            if kind == Kind.ZEROS and len(payload) == _COUNT.size:
                yield from _zeros(_COUNT.unpack(payload)[0])
                continue
            if kind == Kind.PACKED:
                yield self._unpacked(payload)
                continue
            if kind != Kind.DATA:
                raise ProtocolError("cannot read the peer's stream: a message in the middle of it")
            yield payload

    def _unpacked(self, frame: bytearray) -> bytes:
        if self._unpacker is None:
            self._unpacker = Unpacker()
        try:
            return self._unpacker.unpack(frame, limit_bytes=MAX_PAYLOAD)
        except ValueError as error:
            raise ProtocolError(f"cannot unpack a piece of the peer's stream: {error}") from error

    def receive_bytes(self, *, limit: int) -> bytes:
        """Receive a whole stream.  Raises: as `receive_stream`, and ProtocolError for more bytes than the limit."""
        found = bytearray()
        for piece in self.receive_stream():
            found += piece
            if len(found) > limit:
                raise ProtocolError(f"cannot read the peer's stream: more than {limit} bytes")
        return bytes(found)

    def refuse(self, error: InsulaError) -> None:
        """Tell the peer, once, why this ends."""
        if not self._has_refused:
            self._has_refused = True
            with contextlib.suppress(InsulaError):
                self.send(Refuse(code=error.code, message=error.message, hint=error.hint))

    def drain(self) -> None:
        """Say no more, and read what still comes, so that our last words are not lost in a reset (tcp(7)), until the peer

        says no more, too: both sides may wait for each other here.
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        try:
            if isinstance(self._connection, socket.socket):
                # Not SSLSocket's own, which could not read any more.
                socket.socket.shutdown(self._connection, socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                if not self._connection.recv(DRAINED_BYTES):
                    return
        except OSError:
            return

    def close(self) -> None:
        self._connection.close()

    def _wait_for_peer(self, seconds: float) -> None:
        self._is_patient = seconds > SILENCE_SECONDS
        try:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        except OSError as error:  # it is cut already, or no TCP socket
            LOG.debug("cannot set how long the peer may be silent", extra={"fields": {"reason": str(error)}})

    def _frame(self, kind: int, payload: bytes | bytearray | memoryview) -> None:
        header = HEADER.pack(kind, len(payload))
        try:
            with self._sending:
                began = time.monotonic()
                if len(payload) <= JOINED_BYTES:
                    self._connection.sendall(b"".join((header, payload)))
                else:
                    self._connection.sendall(header)
                    self._connection.sendall(payload)
                count = HEADER.size + len(payload)
                self._link.sent(count, seconds=time.monotonic() - began)
                self.sent_bytes += count
                self.raw_bytes += count
        except OSError as error:
            raise MigrationFailed(f"cannot send to the other host: {error.strerror or error}") from error

    def _receive_frame_within(self, seconds: float) -> tuple[int, bytearray]:
        try:
            return self._receive_frame(deadline=time.monotonic() + seconds)
        finally:
            with contextlib.suppress(OSError):  # it is cut
                self._connection.settimeout(PEER_SECONDS)

    def _receive_frame(self, *, deadline: float = math.inf) -> tuple[int, bytearray]:
        kind, length = HEADER.unpack(self._read(HEADER.size, deadline=deadline))
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"cannot read a frame of {length} bytes: the limit is {MAX_PAYLOAD}")
        return kind, self._read(length, deadline=deadline)

    def _read(self, size: int, *, deadline: float) -> bytearray:
        # Not a byte more than is asked for: what follows may be read by another Wire of the same connection.
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            try:
                if deadline < math.inf:
                    self._connection.settimeout(max(_LEAST_SECONDS, deadline - time.monotonic()))
                count = self._connection.recv_into(rest)
            except OSError as error:
                raise MigrationFailed(f"cannot hear the other host: {error.strerror or error}") from error
            if not count:
                raise MigrationFailed("cannot hear the other host: it hung up")
            self.has_heard = True
            rest = rest[count:]
        return found


_ZEROS = bytes(MAX_PAYLOAD)


def _zeros(count: int) -> Iterator[bytes]:
    while count:
        step = min(count, PIECE_BYTES)
        yield bytes(step)
        count -= step


class StreamFile(io.RawIOBase):
    """A stream of pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes | bytearray]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Read on to the stream's end, so that the next message is found."""
        for _piece in self._pieces:
            pass

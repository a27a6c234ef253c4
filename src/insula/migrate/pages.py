# SPDX-License-Identifier: Apache-2.0
"""Memory on its way while it is dumped: CRIU's page server protocol, carried over the wire.

On the source CRIU writes its memory into a socket of ours.  We must understand as much of it as to answer `OPEN2` (is
there a parent image? no), which would cost a round trip per process, and to see the end.  On the target a `criu
page-server` gets the same bytes and writes the images.

    struct page_server_iov { u32 cmd; u64 nr_pages; u64 vaddr; u64 dst_id; }, then nr_pages pages where cmd says so

Source: CRIU's `criu/page-xfer.c`, `criu/include/page-xfer.h`.
"""

import socket
import struct
import threading
from collections.abc import Callable

from insula.migrate.wire import PIECE_BYTES, Wire
from insula.model.errors import MigrationFailed, ProtocolError
from insula.model.migration import Answer, Pages

IOV = struct.Struct("=IxxxxQQQ")
PAGE_BYTES = 4096
_COMMAND_MASK = 0xFFFF
_FLAGS_SHIFT = 16
OPEN2 = 4
ADD_FLAGS = 6
CLOSE = 0x1023
FORCE_CLOSE = 0x1024
PRESENT = 1 << 2
"""PE_PRESENT of CRIU's pagemap flags: the pages themselves follow."""


SO_SNDBUFFORCE = 32
"""socket(7): as SO_SNDBUF, beyond net.core.wmem_max, with CAP_NET_ADMIN."""
BUFFER_BYTES = 2 << 20
PROGRESS_BYTES = 16 << 20
"""Between two reports of how far the memory is."""


class PageStream:
    """Understands as much of the page server protocol as is needed to follow it.  Pure."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._skip = 0
        self.page_bytes = 0
        self.is_closed = False

    def feed(self, data: bytes | memoryview) -> int:
        """Follow the stream.  Returns: how many `OPEN2` were in this piece, each of which CRIU wants answered."""
        opened, position, size = 0, 0, len(data)
        while position < size:
            if self._skip:
                step = min(self._skip, size - position)
                self._skip -= step
                position += step
                continue
            step = min(IOV.size - len(self._header), size - position)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == IOV.size:
                opened += self._command()
                self._header.clear()
        return opened

    def _command(self) -> int:
        command, count, _address, _target = IOV.unpack(self._header)
        name, flags = command & _COMMAND_MASK, command >> _FLAGS_SHIFT
        if name == ADD_FLAGS and flags & PRESENT:
            self._skip = count * PAGE_BYTES
            self.page_bytes += self._skip
        elif name in (CLOSE, FORCE_CLOSE):
            self.is_closed = True
        return int(name == OPEN2)


class PageSender(threading.Thread):
    """Carries CRIU's pages to the wire, in a thread of its own, until CRIU closes its stream."""

    def __init__(self, wire: Wire, *, on_progress: Callable[[int], None]) -> None:
        super().__init__(name="page-sender", daemon=True)
        self._wire = wire
        self._stream = PageStream()
        self._on_progress = on_progress
        self._told_bytes = 0
        self._ours, self.theirs = socket.socketpair()
        for each in (self._ours, self.theirs):
            each.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
        self.failure: Exception | None = None

    @property
    def page_bytes(self) -> int:
        return self._stream.page_bytes

    def run(self) -> None:
        try:
            self._carry()
        except (MigrationFailed, ProtocolError, OSError) as error:
            self.failure = error
        finally:
            self._ours.close()

    def _carry(self) -> None:
        self._wire.send(Pages())
        buffer = memoryview(bytearray(PIECE_BYTES))
        while not self._stream.is_closed:
            count = self._ours.recv_into(buffer)
            if not count:
                raise ProtocolError("CRIU closed its stream of pages early")
            opened = self._stream.feed(buffer[:count])
            if opened:
                self._ours.sendall(b"\0" * opened)  # the target has no parent images
            self._wire.send_data(buffer[:count])
            self._tell()
        self._wire.end_stream()
        status = self._wire.expect(Answer).status
        self._ours.sendall(struct.pack("=i", status))

    def _tell(self) -> None:
        if self.page_bytes - self._told_bytes >= PROGRESS_BYTES:
            self._told_bytes = self.page_bytes
            self._on_progress(self.page_bytes)

    def stop(self) -> None:
        """End the thread, whether or not CRIU came to its end."""
        self.theirs.close()
        if not self.is_alive():
            self._ours.close()
            return
        try:
            self._ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.join()


def feed_page_server(wire: Wire, server: socket.socket) -> int:
    """Write the stream of pages into a page server's socket.  Returns: how it ended, 0 for well."""
    answers = bytearray()

    def listen() -> None:
        while data := server.recv(4096):
            answers.extend(data)

    listener = threading.Thread(target=listen, name="page-answers", daemon=True)
    listener.start()
    for piece in wire.receive_stream():
        server.sendall(piece)
    listener.join(timeout=60.0)
    if len(answers) < 4:
        return -1
    return int(struct.unpack("=i", answers[-4:])[0])

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


class PageSender(threading.Thread):
    """Carries CRIU's pages to the wire, in a thread of its own, until CRIU closes its stream."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(name="page-sender", daemon=True)
        self._wire = wire
        self._ours, self.theirs = socket.socketpair()
        for each in (self._ours, self.theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES * 4)
        self.page_bytes = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._wire.send(Pages())
            while self._carry_one():
                pass
        except (MigrationFailed, ProtocolError, OSError) as error:
            self.failure = error
        finally:
            self._ours.close()

    def _carry_one(self) -> bool:
        header = self._read(IOV.size)
        if not header:
            raise ProtocolError("CRIU closed its stream of pages early")
        command, count, _address, _target = IOV.unpack(header)
        name, flags = command & _COMMAND_MASK, command >> _FLAGS_SHIFT
        self._wire.send_data(header)
        if name == OPEN2:
            self._ours.sendall(b"\0")  # no parent images on the target
        elif name == ADD_FLAGS and flags & PRESENT:
            self._carry_pages(count * PAGE_BYTES)
        elif name in (CLOSE & _COMMAND_MASK, FORCE_CLOSE & _COMMAND_MASK):
            self._wire.end_stream()
            status = self._wire.expect(Answer).status
            self._ours.sendall(struct.pack("=i", status))
            return False
        return True

    def _carry_pages(self, size: int) -> None:
        self.page_bytes += size
        while size:
            data = self._ours.recv(min(size, PIECE_BYTES))
            if not data:
                raise ProtocolError("CRIU closed its stream of pages early")
            self._wire.send_data(data)
            size -= len(data)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._ours.recv(size - len(data))
            if not piece:
                return b""
            data += piece
        return data

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

# SPDX-License-Identifier: Apache-2.0
"""Frames of an attached terminal or pipe, after the connection was upgraded.

    client                                   insulad, then the spawner (which gets the connection itself)
      │ POST …/attach  Connection: Upgrade, Upgrade: insula-stream        │
      │ ◄──────────────────────────── HTTP/1.1 101 Switching Protocols    │
      │ STDIN data … STDIN with length 0 (end of input)  RESIZE  SIGNAL ► │
      │ ◄ HELLO {"id"}  STDOUT data  STDERR data …  EXIT {"exit_code"}    │   or ERROR {"code","message","hint"}

A frame is `>BxxxI`: kind, three zero bytes, length; then the payload of at most MAX_PAYLOAD bytes.  EXIT or ERROR is
the last frame.  Standard library only: the spawner and the CLI import this.
"""

import struct
from collections.abc import Iterator

HEADER = struct.Struct(">BxxxI")
MAX_PAYLOAD = 1 << 20

# client → host
STDIN = 0
RESIZE = 16
"""Payload: `>HH`, rows and columns."""
SIGNAL = 17
"""Payload: the signal's number as one byte."""
DETACH = 18
# host → client
STDOUT = 1
STDERR = 2
ERROR = 3
EXIT = 4
HELLO = 5

SIZE = struct.Struct(">HH")
UPGRADE = "insula-stream"


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Build one frame."""
    return HEADER.pack(kind, len(payload)) + payload


class FrameReader:
    """Cut a byte stream into frames.  Feed it what was read; iterate over the complete frames.

    Raises: ValueError for a length above MAX_PAYLOAD.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(buffer)
            if length > MAX_PAYLOAD:
                raise ValueError(f"a frame of {length} bytes: the limit is {MAX_PAYLOAD}")
            end = HEADER.size + length
            if len(buffer) < end:
                return
            payload = bytes(buffer[HEADER.size : end])
            del buffer[:end]
            yield kind, payload

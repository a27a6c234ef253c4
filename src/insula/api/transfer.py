# SPDX-License-Identifier: Apache-2.0
"""Tar streams between a request and blocking code in a thread, through a socketpair, so that the slower side waits."""

import asyncio
import io
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar, cast

from aiohttp import web

from insula.api.call import Call
from insula.model.errors import BadRequest

CHUNK_BYTES = 1 << 18

Answer = TypeVar("Answer")


class Upload(io.RawIOBase):
    """What the client sends, as a file.  A cut connection is an error, not an end."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.is_complete = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._connection.recv_into(cast(bytearray, buffer))
        if count == 0 and not self.is_complete:
            raise BadRequest("cannot read the upload: the connection was cut")
        return count


async def upload(call: Call, use: Callable[[BinaryIO], Answer]) -> Answer:
    """Let `use` read the body, in a thread.  It may stop before the end: the rest is thrown away."""
    near, far = socket.socketpair()
    source = Upload(far)
    loop = asyncio.get_running_loop()
    near.setblocking(False)

    def work() -> Answer:
        with far, io.BufferedReader(source, CHUNK_BYTES) as file:
            return use(cast(BinaryIO, file))

    with near:
        working = loop.run_in_executor(call.transfers, work)
        try:
            async for chunk in call.request.content.iter_chunked(CHUNK_BYTES):
                if not working.done():
                    await loop.sock_sendall(near, chunk)
            source.is_complete = True
        except (BrokenPipeError, ConnectionResetError):
            # `use` has stopped reading, or the client has gone: either way `use` says what it is.
            pass
        near.close()
        return await working


async def download(
    call: Call, make: Callable[[BinaryIO], None], *, headers: dict[str, str]
) -> web.StreamResponse:
    """Answer with what `make` writes, in a thread.

    Raises: what `make` raises before it has written anything; later the connection is cut.
    """
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    near.setblocking(False)

    def work() -> None:
        with suppress(BrokenPipeError), far, far.makefile("wb", CHUNK_BYTES) as file:  # the client has gone
            make(cast(BinaryIO, file))

    response = web.StreamResponse(headers=headers)
    with near:
        working = loop.run_in_executor(call.transfers, work)
        chunk = await loop.sock_recv(near, CHUNK_BYTES)
        if not chunk:
            await working
        await response.prepare(call.request)
        while chunk:
            await response.write(chunk)
            chunk = await loop.sock_recv(near, CHUNK_BYTES)
        await working
    return response

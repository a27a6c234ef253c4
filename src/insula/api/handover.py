# SPDX-License-Identifier: Apache-2.0
"""Give a client's connection away, to the spawner (attach, exec).

aiohttp stops reading, the descriptor is duplicated, the verb passes the copy on; if it succeeded our copy is closed
without a byte written, if not a normal JSON error is answered.  Unix sockets only; over TLS: `relay.py`.

A client sends nothing after the request until it has seen `101`: aiohttp would take it for another request.
"""

import asyncio
import functools
import os
import threading
from collections.abc import Callable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from insula.api.call import Call
from insula.api.relay import is_encrypted, relay
from insula.model.errors import BadRequest


class HandedOver(web.StreamResponse):
    """An answer of which aiohttp writes nothing."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        return None


def preamble(upgrade: str) -> bytes:
    """Return the HTTP answer that upgrades the connection."""
    return f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n".encode()


async def hand_over(call: Call, give: Callable[[int], object], *, upgrade: str) -> web.StreamResponse:
    """Let `give` pass the connection's descriptor on, in a thread.

    The descriptor is non-blocking and is closed when `give` has returned, also if this request is cancelled before.
    What `give` raises is answered as for any request.  Raises: BadRequest without the Upgrade header.
    """
    if call.request.headers.get("Upgrade", "").lower() != upgrade:
        raise BadRequest(f"cannot stream: no header `Upgrade: {upgrade}`")
    transport = call.request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    if is_encrypted(call.request):
        await relay(call, give, transport=transport)
        return HandedOver()
    transport.pause_reading()
    copy = Copy(transport.get_extra_info("socket").fileno())
    note = functools.partial(_note, call, copy.inode)
    loop = asyncio.get_running_loop()

    def give_and_note(descriptor: int) -> None:
        give(descriptor)
        # Also of a request that was cancelled meanwhile: the connection is given away all the same.
        loop.call_soon_threadsafe(note)

    try:
        await call.run(copy.give, give_and_note)
    except BaseException:
        copy.drop()
        if not transport.is_closing():
            transport.resume_reading()
        raise
    transport.abort()
    return HandedOver()


def _note(call: Call, inode: int) -> None:
    """Go on judging and counting a connection that has left this process."""
    call.api.standing.hand_over(inode, call.judge)
    call.api.gate.hand_over(call.grant.principal.tenant, inode)


class Copy:
    """A duplicate of a descriptor: closed by the thread that gives it away, or by `drop` if that never begins."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._is_taken = False
        self._guard = threading.Lock()

    @property
    def inode(self) -> int:
        """By which the connection is known wherever it is held."""
        return os.fstat(self._descriptor).st_ino

    def _take(self) -> bool:
        with self._guard:
            was_taken, self._is_taken = self._is_taken, True
        return not was_taken

    def give(self, give: Callable[[int], object]) -> None:
        """Let `give` have it, then close it.  After `drop`: nothing."""
        if not self._take():
            return
        try:
            give(self._descriptor)
        finally:
            os.close(self._descriptor)

    def drop(self) -> None:
        """Close it unless it is being given, or was."""
        if self._take():
            os.close(self._descriptor)

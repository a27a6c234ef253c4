# SPDX-License-Identifier: Apache-2.0
"""Give a client's connection away: to the spawner (attach, exec) or to a thread (a migration's stream).

    unix socket: the connection itself.  aiohttp stops reading, the descriptor is duplicated, the verb passes the copy
    on; if it succeeded our copy is closed without a byte written, if not a normal JSON error is answered.
    TLS: the session cannot leave this process, so one end of a socketpair is given away and the loop relays.

A client sends nothing after the request until it has seen `101`: aiohttp would take it for another request.
"""

import asyncio
import os
import socket
from collections.abc import Callable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from insula.api.call import Call
from insula.model.errors import BadRequest

SO_SNDBUFFORCE = 32
"""socket(7): as SO_SNDBUF, beyond net.core.wmem_max, with CAP_NET_ADMIN."""
RELAY_BYTES = 2 << 20
"""What may lie between the loop and who reads: each switch between the two threads costs up to an interval."""


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
    if transport.get_extra_info("ssl_object") is not None:
        return await _relay(call, give, transport=transport)
    transport.pause_reading()
    try:
        await call.run(_give, os.dup(transport.get_extra_info("socket").fileno()), give=give)
    except BaseException:
        if not transport.is_closing():
            transport.resume_reading()
        raise
    transport.abort()
    return HandedOver()


def _give(descriptor: int, *, give: Callable[[int], object]) -> None:
    try:
        give(descriptor)
    finally:
        os.close(descriptor)


async def _relay(
    call: Call, give: Callable[[int], object], *, transport: asyncio.Transport
) -> web.StreamResponse:
    near, far = socket.socketpair()
    for each in (near, far):
        each.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, RELAY_BYTES)
    near.setblocking(False)
    far.setblocking(False)
    transport.pause_reading()
    try:
        await call.run(_give, far.detach(), give=give)
    except BaseException:
        near.close()
        if not transport.is_closing():
            transport.resume_reading()
        raise
    await relay(transport, near)
    return HandedOver()


class Half(asyncio.Protocol):
    """One side of a relay: what it receives the other side sends, no faster than that can."""

    def __init__(self, other: asyncio.Transport | None, *, ended: asyncio.Event) -> None:
        self.other = other
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()

    def eof_received(self) -> bool:
        # TLS has no half-closed connections: the end of one direction ends both, after what was written is out.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.close()
        self._ended.set()


async def relay(transport: asyncio.Transport, near: socket.socket) -> None:
    """Carry bytes both ways until one side ends.  The transport must be paused; its protocol is replaced."""
    ended = asyncio.Event()
    local, _ = await asyncio.get_running_loop().create_connection(
        lambda: Half(transport, ended=ended), sock=near
    )
    transport.set_protocol(Half(local, ended=ended))
    try:
        transport.resume_reading()
        await ended.wait()
    finally:
        local.close()
        transport.close()

# SPDX-License-Identifier: Apache-2.0
"""Streams over TLS: the session cannot leave this process, so a pair of sockets stands for it.

    client ══ TLS ══ this process ── socket pair ── spawner

What goes through is carried both ways until one end has gone; then the other is closed.  Unlike a connection that was
handed over, such a stream ends with insulad: the program goes on, the client attaches again.
"""

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from insula.api.call import Call

BUFFER_BYTES = 64 << 10


class _StandIn(asyncio.StreamReaderProtocol):
    """What a connection speaks to instead of aiohttp, to its end: what the client still sends is no request.

    aiohttp forgets a connection of whose end it is told, and cancels its handler; so it is told when all is carried.
    """

    def __init__(self, transport: asyncio.Transport, *, loop: asyncio.AbstractEventLoop) -> None:
        self.reader = asyncio.StreamReader(limit=BUFFER_BYTES, loop=loop)
        super().__init__(self.reader, loop=loop)
        self._before = transport.get_protocol()
        self._is_lost = self._is_over = False
        self.connection_made(transport)
        transport.set_protocol(self)
        self.writer = asyncio.StreamWriter(transport, self, self.reader, loop)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_lost = True
        if self._is_over:
            self._before.connection_lost(exc)

    def end(self) -> None:
        """Close the connection: all is carried."""
        self._is_over = True
        if self._is_lost:
            self._before.connection_lost(None)
        elif not self.writer.is_closing():
            self.writer.close()


async def relay(call: Call, give: Callable[[int], object], *, transport: asyncio.Transport) -> None:
    """Let `give` pass one end of a pair on, in a thread, and carry between the other and the client until the end.

    Then the connection is closed.  What `give` raises leaves it as it was.
    """
    program, to_program = await _given(call, give)
    client = _StandIn(transport, loop=asyncio.get_running_loop())
    try:
        await _carry({(client.reader, to_program), (program, client.writer)})
        await _drain(client.writer)
    finally:
        to_program.close()
        client.end()


async def _given(
    call: Call, give: Callable[[int], object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the near end of a pair whose other end `give` has passed on.

    Its socket is the writer's, which goes on writing when it was closed: closed by hand it would lose what waits.
    """
    near, far = socket.socketpair()
    try:
        near.setblocking(False)
        with far:
            far.setblocking(False)
            await call.run(give, far.fileno())
        return await asyncio.open_connection(sock=near, limit=BUFFER_BYTES)
    except BaseException:
        near.close()
        raise


async def _carry(ways: set[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Carry each way until one of them ends."""
    pumps = {asyncio.create_task(_pump(source, sink)) for source, sink in ways}
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(BUFFER_BYTES):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        return


async def _drain(sink: asyncio.StreamWriter) -> None:
    """Let what is written go out: closing would be an abort, which drops it."""
    try:
        if not sink.is_closing():
            # Not 0: TLS with nothing to write would be full for ever.
            sink.transport.set_write_buffer_limits(high=1)
            await sink.drain()
    except ConnectionError:
        return


def is_encrypted(request: web.Request) -> bool:
    """Tell whether a request came over TLS."""
    return request.transport is not None and request.transport.get_extra_info("ssl_object") is not None

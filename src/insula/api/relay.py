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


async def relay(call: Call, give: Callable[[int], object], *, transport: asyncio.Transport) -> None:
    """Let `give` pass one end of a pair on, in a thread, and carry between the other and the client until the end.

    What `give` raises leaves the connection as it was.
    """
    near, far = socket.socketpair()
    with near:
        near.setblocking(False)
        with far:
            far.setblocking(False)
            await call.run(give, far.fileno())
        inside = await asyncio.open_connection(sock=near, limit=BUFFER_BYTES)
        await _carry(transport, inside)


async def _carry(
    transport: asyncio.Transport, inside: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    before = transport.get_protocol()
    outside = _take_over(transport)
    try:
        (client, to_client), (program, to_program) = outside, inside
        ways = {
            asyncio.create_task(_pump(client, to_program)),
            asyncio.create_task(_pump(program, to_client)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await _drain(to_client)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_program.close()
    finally:
        # It is told of the connection's end, and forgets it.
        transport.set_protocol(before)


def _take_over(transport: asyncio.Transport) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=BUFFER_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    protocol.connection_made(transport)
    transport.set_protocol(protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


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
            sink.transport.set_write_buffer_limits(high=0)
            await sink.drain()
    except ConnectionError:
        return


def is_encrypted(request: web.Request) -> bool:
    """Tell whether a request came over TLS."""
    return request.transport is not None and request.transport.get_extra_info("ssl_object") is not None

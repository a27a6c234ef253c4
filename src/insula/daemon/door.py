# SPDX-License-Identifier: Apache-2.0
"""The port for other hosts as a whole: the doorkeeper, the loop that speaks HTTP, the threads that speak migrations."""

import asyncio
import contextlib
import socket
import ssl

from aiohttp import web

from insula.daemon.arrivals import Arrivals
from insula.daemon.listen import Doorkeeper, open_listeners
from insula.daemon.pki import HANDSHAKE_S


class HostDoor:
    """Open from `open` to `close`; both are called in the loop."""

    def __init__(
        self,
        listeners: list[socket.socket],
        *,
        runner: web.AppRunner,
        context: ssl.SSLContext,
        arrivals: Arrivals,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runner = runner
        self._context = context
        self._arrivals = arrivals
        self._handshakes: set[asyncio.Task[None]] = set()
        self._keeper = Doorkeeper(listeners, on_migration=arrivals.take, on_other=self._pass_to_loop)
        self._keeper.start()

    @classmethod
    def open(
        cls, address: str, *, runner: web.AppRunner, context: ssl.SSLContext, arrivals: Arrivals
    ) -> "HostDoor":
        """Let others in at HOST:PORT.  Raises: BadRequest if we cannot listen there."""
        return cls(open_listeners(address), runner=runner, context=context, arrivals=arrivals)

    async def close(self) -> None:
        """Let nobody in any more, and end the migrations; the runner ends its own connections."""
        await asyncio.to_thread(self._keeper.close)
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        await asyncio.to_thread(self._arrivals.close)

    def _pass_to_loop(self, connection: socket.socket) -> None:
        self._loop.call_soon_threadsafe(self._begin, connection)

    def _begin(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._serve_http(connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _serve_http(self, connection: socket.socket) -> None:
        server = self._runner.server
        if server is None:  # the runner was cleaned up meanwhile
            connection.close()
            return
        with contextlib.suppress(OSError):  # no TLS, a wrong certificate, too slow
            await self._loop.connect_accepted_socket(
                server, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )

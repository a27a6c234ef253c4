# SPDX-License-Identifier: Apache-2.0
"""The port for other hosts as a whole: the doorkeeper, the loop that speaks HTTP, the threads that speak migrations."""

import asyncio
import socket
import ssl
import threading

from aiohttp import web

from insula.api.guests import Guests
from insula.daemon.arrivals import Arrivals
from insula.daemon.listen import Doorkeeper, open_listeners
from insula.daemon.pki import HANDSHAKE_S
from insula.daemon.strangers import Strangers

MAX_BETWEEN = 64
"""Connections on their way from the doorkeeper to the loop, which may be busy."""


class HostDoor:
    """Open from `open` to `close`; both are called in the loop."""

    def __init__(
        self,
        listeners: list[socket.socket],
        *,
        runner: web.AppRunner,
        context: ssl.SSLContext,
        arrivals: Arrivals,
        guests: Guests,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._runner = runner
        self._context = context
        self._arrivals = arrivals
        self._handshakes: set[asyncio.Task[None]] = set()
        self._strangers = Strangers(is_guest=guests.is_guest)
        self._between = threading.BoundedSemaphore(MAX_BETWEEN)
        self._keeper = Doorkeeper(listeners, on_migration=arrivals.take, on_other=self._pass_to_loop)
        self._keeper.start()

    @classmethod
    def open(
        cls,
        address: str,
        *,
        runner: web.AppRunner,
        context: ssl.SSLContext,
        arrivals: Arrivals,
        guests: Guests,
    ) -> "HostDoor":
        """Let others in at HOST:PORT.  guests: `Gate.guests`.  Raises: BadRequest if we cannot listen there."""
        listeners = open_listeners(address)
        return cls(listeners, runner=runner, context=context, arrivals=arrivals, guests=guests)

    async def close(self) -> None:
        """Let nobody in any more, and end the migrations; the runner ends its own connections."""
        await asyncio.to_thread(self._keeper.close)
        self._strangers.close()
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        await asyncio.to_thread(self._arrivals.close)

    def _pass_to_loop(self, connection: socket.socket) -> None:
        if self._between.acquire(blocking=False):
            self._loop.call_soon_threadsafe(self._begin, connection)
        else:
            connection.close()

    def _begin(self, connection: socket.socket) -> None:
        self._between.release()
        server = self._runner.server
        if server is None or not self._strangers.may_come(connection):  # none: the runner was cleaned up
            connection.close()
            return
        task = self._loop.create_task(self._shake_hands(connection, server))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, server: web.Server) -> None:
        stranger = self._strangers.let_in(connection)
        try:
            stranger.transport, _ = await self._loop.connect_accepted_socket(
                server, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError:  # no TLS, a wrong certificate, too slow
            self._strangers.forget(stranger)
        else:
            if stranger.is_gone:
                stranger.cut()

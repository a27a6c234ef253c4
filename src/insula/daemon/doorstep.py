# SPDX-License-Identifier: Apache-2.0
"""The unix sockets' doors: take connections for the loop, a bounded number of each uid, a few at a time.

    everybody's     a round that had to refuse somebody is followed by a rest: a flood of one costs others little of the loop
    a uid's own     made at its first connection (`own_doors.py`); while that uid is too fast nobody looks at it at all

A connection beyond the bound is told so in one write and closed: nothing is made for it, nothing of it is read.  That is
done after a while, so that who tries again at once has its own connections to wait for, and the queue in which others
wait, too, stays short.  Root has no bound.
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from weakref import WeakSet

from aiohttp import web

from insula.api.gate import penalty_s, source_of_uid
from insula.daemon.own_doors import MAX_DOORS, OwnDoors
from insula.kernel import unix_peer
from insula.model.errors import TooManyRequests
from insula.tenant.idmap import is_container_uid
from insula.tenant.pace import Bucket

LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""Of one uid: each costs memory, and may keep the loop busy."""
CONNECTS_PER_S = 300
"""Of one uid; two seconds' worth may come at once.  Fewer if its tenant's requests are limited: each brings one."""
ROUND_S = 0.0003
"""For connections in one round of the loop, so that requests have their turn between them; a refusal takes 15 us, and who
gives up at once and tries again fills the queue with what is dead."""
FLOODED_REST_S = 0.003
"""For everybody's door after a round with refusals: these take a tenth of the loop's time, and others have their own door."""
OWN_REST_S = 0.1
"""For the door of a uid that is too fast."""
MAX_PENALTIES = 256
"""Connections of all uids together that wait for their refusal, each a descriptor; beyond that it comes at once."""
REST_S = 0.2
"""After a connection for which there was no descriptor left."""
UNREAD_BYTES = 64 << 10
"""Of a refused request that are thrown away."""
LOOK_S = 0.5
"""How often it is looked whether a uid that has too many has closed some."""

_BODY = (
    b'{"error":{"code":"too_many_requests","message":"cannot take so many connections of one user",'
    b'"hint":"connect less often, and close those that are idle (at most %d)"}}' % MAX_CONNECTIONS
)
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Doorstep:
    """Open from its making to `close`; both belong to the loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        runner: web.AppRunner,
        *,
        rate_of: Callable[[str], int | None] = lambda _source: None,
        counted_uid: Callable[[int], int] = lambda uid: uid,
        own: OwnDoors | None = None,
    ) -> None:
        """listener: everybody's, bound and listening.  rate_of: requests a second of a uid's tenant, as `Gate.rate_of`.

        counted_uid: as which uid another one is counted, and gets its door.
        """
        self._listener = listener
        self._runner = runner
        self._rate_of = rate_of
        self._counted_uid = counted_uid
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._doors: dict[int, socket.socket] = {}
        """Uid → its own door; the longest unused first."""
        self._taken: dict[int, WeakSet[asyncio.Transport]] = {}
        self._paces: dict[int, Bucket] = {}
        self._refused: set[socket.socket] = set()
        """Not answered yet."""
        self._full_until: dict[int, float] = {}
        """Uid → until when nobody looks whether it has closed some: a look costs more than a refusal."""
        self._beginning: set[asyncio.Task[None]] = set()
        self._begun: Counter[int] = Counter()
        """Uid → connections that are not among the taken yet."""
        listener.setblocking(False)
        self._listen(listener)

    async def close(self) -> None:
        """Take nobody in any more; the runner ends what was taken."""
        for each in (self._listener, *self._doors.values()):
            self._loop.remove_reader(each.fileno())
            each.close()
        if self._own is not None:
            self._own.clear()
        while self._refused:
            _answer(self._refused.pop())
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _take_some(self, listener: socket.socket) -> None:
        until = self._loop.time() + ROUND_S
        refusals = 0
        while self._loop.time() < until:
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:  # EMFILE: those who wait go on waiting
                LOG.error("no room for a connection", extra={"fields": {"reason": str(error)}})
                self._rest(listener, REST_S)
                return
            connection.setblocking(False)
            refusals += not self._take(connection, self._uid_of(connection))
        if refusals:
            self._rest(listener, FLOODED_REST_S if listener is self._listener else OWN_REST_S)

    def _uid_of(self, connection: socket.socket) -> int:
        uid = unix_peer.credentials(connection).uid
        return uid if uid in self._doors else self._counted_uid(uid)

    def _rest(self, listener: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listener.fileno())
        self._loop.call_later(seconds, self._listen, listener)

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # not closed meanwhile
            self._loop.add_reader(listener.fileno(), self._take_some, listener)

    def _take(self, connection: socket.socket, uid: int) -> bool:
        """Returns: whether it was taken; else it is refused."""
        server = self._runner.server
        if server is None or self._is_full(uid):
            self._refuse(connection)
            return False
        self._open_own(uid)
        self._begun[uid] += 1
        task = self._loop.create_task(self._begin(connection, server, uid=uid))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return True

    def _open_own(self, uid: int) -> None:
        """Give a uid a door of its own, or note that it uses it."""
        if uid == 0 or self._own is None or is_container_uid(uid):
            return
        door = self._doors.pop(uid, None)
        if door is None:
            if len(self._doors) >= MAX_DOORS:
                self._close_own(next(iter(self._doors)))
            try:
                door = self._own.open(uid)
            except OSError as error:
                LOG.warning("no door of one's own", extra={"fields": {"uid": uid, "reason": str(error)}})
                return
            self._listen(door)
        self._doors[uid] = door

    def _close_own(self, uid: int) -> None:
        door = self._doors.pop(uid)
        self._loop.remove_reader(door.fileno())
        door.close()
        if self._own is not None:
            self._own.remove(uid)

    def _refuse(self, connection: socket.socket) -> None:
        if len(self._refused) >= MAX_PENALTIES:
            _answer(connection)
            return
        self._refused.add(connection)
        self._loop.call_later(penalty_s(), self._answer_refused, connection)

    def _answer_refused(self, connection: socket.socket) -> None:
        if connection in self._refused:  # else `close` has answered it
            self._refused.remove(connection)
            _answer(connection)

    async def _begin(self, connection: socket.socket, server: web.Server, *, uid: int) -> None:
        try:
            with contextlib.suppress(OSError):
                transport, _ = await self._loop.connect_accepted_socket(server, connection)
                self._taken.setdefault(uid, WeakSet()).add(transport)
        finally:
            self._begun[uid] -= 1

    def _is_too_fast(self, uid: int) -> bool:
        """Tell whether a uid connects faster than anybody needs: who gives up at once has few open, and costs as much."""
        now = self._loop.time()
        rate = self._rate_of(source_of_uid(uid))
        # A quarter more than its requests: who is a little too fast is slowed by the gate, not refused here.
        connects = CONNECTS_PER_S if rate is None else min(CONNECTS_PER_S, rate + rate // 4 + 1)
        bucket = self._paces.setdefault(uid, Bucket.full(connects, now=now))
        try:
            return bucket.take(connects, now=now) > 0
        except TooManyRequests:
            return True

    def _is_full(self, uid: int) -> bool:
        if uid == 0:
            return False
        if self._is_too_fast(uid):
            return True
        taken, begun = self._taken.get(uid, WeakSet()), self._begun[uid]
        if len(taken) + begun < MAX_CONNECTIONS:
            return False
        now = self._loop.time()
        if now < self._full_until.get(uid, now):
            return True
        self._taken[uid] = WeakSet(each for each in taken if not each.is_closing())
        if len(self._taken[uid]) + begun < MAX_CONNECTIONS:
            return False
        self._full_until[uid] = now + LOOK_S
        return True


def _answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.send(REFUSAL)
        # What is left unread would make the end of the answer an error (ECONNRESET, unix(7)).
        connection.recv(UNREAD_BYTES)

# SPDX-License-Identifier: Apache-2.0
"""Changes of containers, from the store's threads to the requests that wait for them, without holding a thread."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from insula.model.change import Change, ChangeLine, change_of
from insula.model.monitor import Lost
from insula.model.record import ContainerRecord

Seen = asyncio.Queue[ContainerRecord | None]
MAX_WAITING = 10_000
"""Changes that wait for one reader; one that is slower misses the oldest, and is told how many."""


class Reader:
    """What waits for one reader of changes.  Belongs to the loop's thread."""

    def __init__(self, *, tenant: str | None) -> None:
        """tenant: whose changes; None: everybody's."""
        self._tenant = tenant
        self._waiting: asyncio.Queue[Change] = asyncio.Queue(MAX_WAITING)
        self._lost = 0

    def give(self, change: Change) -> None:
        """Let a change wait, if it is the reader's to know."""
        if self._tenant not in (None, change.tenant):
            return
        if self._waiting.full():
            self._waiting.get_nowait()
            self._lost += 1
        self._waiting.put_nowait(change)

    async def get(self) -> ChangeLine:
        """Wait for the next one.  What was missed is told first."""
        if self._lost:
            lost, self._lost = self._lost, 0
            return Lost(events=lost)
        return await self._waiting.get()


class Changes:
    """Subscribed to the store by `daemon/wiring.py`.  Everything but `tell` belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watchers: dict[str, set[Seen]] = {}
        self._known: dict[str, ContainerRecord] = {}
        self._readers: set[Reader] = set()
        self._listeners: list[Callable[[Change], None]] = []

    def know(self, records: Iterable[ContainerRecord]) -> None:
        """Take what was there at the start."""
        self._known.update((record.id, record) for record in records)

    def tell(self, container_id: str, record: ContainerRecord | None) -> None:
        """Pass a change on; None: the container is gone.  From any thread, also after the loop's end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, container_id, record)

    def _deliver(self, container_id: str, record: ContainerRecord | None) -> None:
        for queue in self._watchers.get(container_id, ()):
            queue.put_nowait(record)
        before = self._known.pop(container_id, None)
        if record is not None:
            self._known[container_id] = record
        change = change_of(before, record, at=time.time())
        if change is not None:
            self._hand_out(change)

    def announce(self, change: Change) -> None:
        """Tell something that is no change of a record.  From any thread, also after the loop's end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, change)

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Have something told of every change, in the loop's thread: it must not wait."""
        self._listeners.append(listener)

    def _hand_out(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)
        for reader in self._readers:
            reader.give(change)

    @contextmanager
    def read_all(self, *, tenant: str | None) -> Iterator[Reader]:
        """Collect what happens to any container, in order, while the block runs.

        tenant: to whose; None: to anybody's.
        """
        reader = Reader(tenant=tenant)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    @contextmanager
    def watch(self, container_id: str) -> Iterator[Seen]:
        """Collect the changes of a container, in order, while the block runs."""
        queue: Seen = asyncio.Queue()
        self._watchers.setdefault(container_id, set()).add(queue)
        try:
            yield queue
        finally:
            self._watchers[container_id].discard(queue)
            if not self._watchers[container_id]:
                del self._watchers[container_id]

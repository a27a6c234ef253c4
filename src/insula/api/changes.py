# SPDX-License-Identifier: Apache-2.0
"""Changes of containers, from the store's threads to the requests that wait for them, without holding a thread."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from insula.model.record import ContainerRecord

Seen = asyncio.Queue[ContainerRecord | None]


class Changes:
    """Subscribed to the store by `daemon/wiring.py`.  Everything but `tell` belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watchers: dict[str, set[Seen]] = {}

    def tell(self, container_id: str, record: ContainerRecord | None) -> None:
        """Pass a change on; None: the container is gone.  From any thread, also after the loop's end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, container_id, record)

    def _deliver(self, container_id: str, record: ContainerRecord | None) -> None:
        for queue in self._watchers.get(container_id, ()):
            queue.put_nowait(record)

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

# SPDX-License-Identifier: Apache-2.0
"""Requests that stand open, and whether their callers may still do what they began: a right that goes ends them.

Rights are decided at each request; a stream may last for days.  So each request under way is judged again when users or
tokens change and every few seconds, for what changes without our doing: a group's members, an account, a clock.

    answered here (logs, stats, wait …)        its task is cancelled, the connection cut
    handed over to the spawner (attach, exec)  its socket is shut down in the spawner's hands (`Streams`)
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from insula.model.errors import InsulaError

LOG = logging.getLogger(__name__)

REVIEW_S = 5.0
"""How long a right that was taken away outside insula may still be used by what had begun before."""

Judge = Callable[[], object]
"""Raises an InsulaError if the caller may not do this any more."""


class Streams(Protocol):
    """The connections that the spawner holds, each known by the inode of its socket."""

    def held(self) -> frozenset[int]: ...
    def hang_up(self, inode: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Open:
    judge: Judge
    request: web.Request


class Standing:
    """All requests under way.  For the loop's thread; `review_soon` for any."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, streams: Streams) -> None:
        self._loop = loop
        self._streams = streams
        self._open: set[_Open] = set()
        self._handed_over: dict[int, Judge] = {}

    @contextlib.contextmanager
    def hold(self, request: web.Request, judge: Judge) -> Iterator[None]:
        """Judge a request again and again while the block runs."""
        entry = _Open(judge=judge, request=request)
        self._open.add(entry)
        try:
            yield
        finally:
            self._open.discard(entry)

    def hand_over(self, inode: int, judge: Judge) -> None:
        """Go on judging a connection that is in the spawner's hands.  The right may have gone on the way there."""
        if _may(judge):
            self._handed_over[inode] = judge
        else:
            self._streams.hang_up(inode)

    def review_soon(self) -> None:
        """Judge everything now: users or tokens have changed."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.review)

    def review(self) -> None:
        """Cut what is not allowed any more."""
        for entry in list(self._open):
            if not _may(entry.judge) and entry.request.transport is not None:
                # The handler is cancelled by the end of its connection, as when a client goes.
                entry.request.transport.abort()
        held = self._streams.held() if self._handed_over else frozenset()
        for inode, judge in list(self._handed_over.items()):
            if inode not in held:
                del self._handed_over[inode]
            elif not _may(judge):
                self._streams.hang_up(inode)
                del self._handed_over[inode]

    async def run(self) -> None:
        """Review for ever."""
        while True:
            await asyncio.sleep(REVIEW_S)
            self.review()


def _may(judge: Judge) -> bool:
    try:
        judge()
    except InsulaError as error:
        LOG.info("a right has ended, and what stood on it", extra={"fields": {"reason": error.message}})
        return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""The spawner's loop: descriptors and who handles them, moments, and tasks that wait for either.

A task is a generator that yields a `Wait` wherever it would block, so that nothing that one container does holds the
births and ends of all others up.  What a task raises it must handle itself.  Standard library only.
"""

import contextlib
import heapq
import itertools
import json
import selectors
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Wait(NamedTuple):
    """What a task waits for: a descriptor that can be read (-1: none), until a moment of time.monotonic()."""

    descriptor: int
    deadline: float


#: Yields what it waits for, is sent whether that came (False: the deadline did), returns its result.
Task = Generator[Wait, bool | None, _T]


def pause(seconds: float) -> Wait:
    """Return a wait for nothing but the time."""
    return Wait(-1, time.monotonic() + seconds)


def log(message: str, **numbers: int) -> None:
    """Write one line to the spawner's log."""
    with contextlib.suppress(OSError):
        print(json.dumps({"at": time.time(), "message": message, **numbers}), file=sys.stderr, flush=True)


@dataclass(eq=False, slots=True)
class Timer:
    """A moment at which something is called, unless it was cancelled."""

    callback: Callable[[], None] | None

    def cancel(self) -> None:
        self.callback = None


class EventLoop:
    """Descriptors and who handles them: the `Loop` of `stdio.py`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back when a descriptor is ready; replaces what was watched before."""
        try:
            self._selector.modify(descriptor, events, callback)
        except KeyError:
            self._selector.register(descriptor, events, callback)

    def unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call once at a moment of time.monotonic()."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (deadline, next(self._numbers), timer))
        return timer

    def begin(self, task: Task[None]) -> None:
        """Run a task until it waits for the first time; the loop does the rest."""
        self._advance(task, is_ready=None)

    def run_once(self) -> None:
        for key, events in self._selector.select(self._seconds_left()):
            # An earlier callback of the same round may have closed this descriptor.
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                self._call(key.fd, key.data, events=events)
        self._call_timers()

    def _seconds_left(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _call_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._call_one(callback)

    def _call_one(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001  one container's trouble must not end the parent of all
            log(f"timer failed: {error!r}")

    def _call(self, descriptor: int, callback: Callable[[int], None], *, events: int) -> None:
        try:
            callback(events)
        except Exception as error:  # noqa: BLE001  one container's trouble must not end the parent of all
            log(f"callback failed: {error!r}", descriptor=descriptor)
            self.unwatch(descriptor)

    def _advance(self, task: Task[None], *, is_ready: bool | None) -> None:
        try:
            wait = task.send(is_ready)
        except StopIteration:
            return
        self._wait(task, wait)

    def _wait(self, task: Task[None], wait: Wait) -> None:
        def over(*, is_ready: bool) -> None:
            timer.cancel()
            if wait.descriptor >= 0:
                self.unwatch(wait.descriptor)
            self._advance(task, is_ready=is_ready)

        timer = self.call_at(wait.deadline, lambda: over(is_ready=False))
        if wait.descriptor >= 0:
            self.watch(wait.descriptor, selectors.EVENT_READ, lambda _events: over(is_ready=True))

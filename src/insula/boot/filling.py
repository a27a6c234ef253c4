# SPDX-License-Identifier: Apache-2.0
"""Who fills which container (`filler.py`): begun before its restore, known until it has ended well.

    fill      a filler beside the room, listening in the folder of images
    fill-later  the same with a store that is empty at first (`supply.py`)
    supply    how an insulad brings the pages of such a one: its store, and the other ends of the two links
    filling   is it being filled, how much is missing, a pidfd to wait by

A copy of every userfaultfd waits in a socket that nobody reads: as long as it does, what is missing blocks whoever touches
it.  If a filler ends before all is there, the container is killed while those copies are still held: it never sees a zero that
should be data.  Standard library only.
"""

import contextlib
import os
import selectors
import signal
import socket
from dataclasses import dataclass
from typing import Any, NoReturn

from insula.boot import birth, child, engine, filler
from insula.boot.filler import Progress
from insula.boot.jobs import Host
from insula.boot.loop import log
from insula.boot.supply import Supply
from insula.kernel import namespace

_SO_SNDBUFFORCE = 32
_KEEPER_BYTES = 64 << 20
"""Room for the copies of some ten thousand processes."""


@dataclass(slots=True)
class Filling:
    """A filler at work, or one that failed."""

    born: namespace.Child
    keeper: socket.socket
    progress: Progress
    slots: dict[int, int]
    supplied_by: tuple[int, ...] = ()
    """The store and insulad's ends of the two links, if the pages come later."""
    failure: str = ""

    def close(self) -> None:
        """Let go of all but what is known of its end."""
        self.keeper.close()
        for each in self.supplied_by:
            os.close(each)
        self.supplied_by = ()


_fillings: dict[str, Filling] = {}


def fill(host: Host, body: dict[str, Any], descriptors: list[int], *, is_later: bool = False) -> birth.Answer:
    """Start the filler of a room.

    body: key; slots, the pid in the container → where its pages are.  descriptors: the folder of images, the store.
    is_later: whether the pages are still to come into the store.
    """
    key: str = body["key"]
    stop(key)
    images, store = descriptors
    slots = {int(pid): int(slot) for pid, slot in body["slots"].items()}
    progress = Progress()
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(_listen(images))
        keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(keeper.close)
        undo.enter_context(theirs)
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _KEEPER_BYTES)
        links = [_link(undo) for _ in range(2)] if is_later else []
        born = namespace.spawn(0)
        if born.pid == 0:
            _become_filler(
                listener,
                store=store,
                images=images,
                keeper=theirs,
                slots=slots,
                progress=progress,
                links=[inner for _outer, inner in links],
            )
        supplied_by = (os.dup(store), *(os.dup(outer.fileno()) for outer, _inner in links)) if links else ()
        undo.pop_all()
        for each in (listener, theirs, *(end for pair in links for end in pair)):
            each.close()
    _fillings[key] = Filling(born, keeper, progress, slots, supplied_by)
    host.fillers.add(born.pid)
    host.loop.watch(born.pidfd, selectors.EVENT_READ, lambda _events: _ended(host, key, born))
    return {"pid": born.pid}, []


def fill_later(host: Host, body: dict[str, Any], descriptors: list[int]) -> birth.Answer:
    """Start the filler of a room whose store is empty at first.  As `fill`."""
    return fill(host, body, descriptors, is_later=True)


def supply(key: str) -> birth.Answer:
    """Hand out how pages are brought: slots; the store and the two links, none if there is nothing to bring."""
    filling = _fillings.get(key)
    if filling is None:
        return {"slots": {}}, []
    return {"slots": {str(pid): slot for pid, slot in filling.slots.items()}}, [
        os.dup(each) for each in filling.supplied_by
    ]


def _link(undo: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(outer.close)
    undo.callback(inner.close)
    return outer, inner


def _listen(images: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(filler.SOCKET_NAME, dir_fd=images)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{images}/{filler.SOCKET_NAME}")
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _become_filler(
    listener: socket.socket,
    *,
    store: int,
    images: int,
    keeper: socket.socket,
    slots: dict[int, int],
    progress: Progress,
    links: list[socket.socket],
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        child.reset_signals()
        kept = (listener.fileno(), store, images, keeper.fileno(), *(each.fileno() for each in links))
        filler.close_all_but(kept)
        code = filler.serve(
            listener,
            store=store,
            images=images,
            keeper=keeper,
            slots=slots,
            progress=progress,
            supply=Supply(*links) if links else None,
        )
    finally:  # whatever it was: nothing of the spawner may go on in here
        os._exit(code)


def _ended(host: Host, key: str, born: namespace.Child) -> None:
    found = os.waitid(os.P_PIDFD, born.pidfd, os.WEXITED | os.WNOHANG)
    if found is None:
        return
    host.loop.unwatch(born.pidfd)
    os.close(born.pidfd)
    host.fillers.discard(born.pid)
    filling = _fillings.get(key)
    if filling is None or filling.born is not born:
        return
    if found.si_code == os.CLD_EXITED and found.si_status == 0:
        del _fillings[key]
    else:
        filling.failure = filling.progress.failure or f"the filler ended with {found.si_status}"
        log(f"the memory of {key[:12]} cannot be filled, it is killed: {filling.failure}")
        _kill(host, key)
    filling.close()


def _kill(host: Host, key: str) -> None:
    container = host.containers.get(key)
    group = container.group if container is not None and container.alive else engine.group_of(key)
    if group is not None:
        with contextlib.suppress(OSError):
            group.kill()


def stop(key: str) -> None:
    """End the filler of a room or container that goes.  Does nothing where there is none."""
    filling = _fillings.pop(key, None)
    if filling is None:
        return
    if not filling.failure:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(filling.born.pidfd, signal.SIGKILL)
        filling.close()


def describe(key: str) -> birth.Answer:
    """Say how far a container is filled."""
    filling = _fillings.get(key)
    if filling is None:
        return {"state": "filled"}, []
    memories, left_bytes, is_running = filling.progress.read()
    answer: dict[str, object] = {"memories": memories, "left_bytes": left_bytes, "is_running": is_running}
    if filling.failure:
        return {**answer, "state": "failed", "reason": filling.failure}, []
    return {**answer, "state": "filling"}, [os.dup(filling.born.pidfd)]


def reason_of(key: str) -> str:
    """Say why a container was killed; empty if it was not for its memory."""
    filling = _fillings.get(key)
    return f"its memory did not arrive: {filling.failure}" if filling is not None and filling.failure else ""

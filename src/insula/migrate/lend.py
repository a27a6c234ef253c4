# SPDX-License-Identifier: Apache-2.0
"""The source's side of post-copy: the frozen processes are kept until the target has pulled their memory.

    before the freeze   files, shared memory: as ever; of private memory only which pages there are (`LaterTracker`)
    restore … pull      `serve_pull` reads what the target asks for out of the frozen processes, from outside
    until all is there  `settle.confirm_or_take_back` asks the target how much is missing; then they are ended

Whoever pulls is known by its certificate, and gets only the memory of a container that it owns, or is being given right now.
Nothing is kept in insulad: after its death, or a cut cable, the target connects again.

Out of scope: the target's side (`pull.py`).  Source: proc_pid_mem(5).
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from insula.kernel.pagemap import PAGE_BYTES
from insula.migrate.fault import Point
from insula.migrate.precopy import bytes_of, inner_pid
from insula.migrate.settle import LEAVING
from insula.migrate.track import Last, Range, Tracker
from insula.migrate.wire import ZSTD, Wire
from insula.model.errors import ContainerNotFound, MemoryLost, MigrationFailed, ProtocolError, Unsupported
from insula.model.lifecycle import Status
from insula.model.migration import Accept, Answer, Ended, Offer, Pull, Want
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime
from insula.runtime.fault import fault

MAX_WANTED = 1024
"""Pages of one `Want`."""
_UNREADABLE = (errno.EIO, errno.EFAULT, errno.ENOMEM, errno.ESRCH)


class LaterTracker:
    """Tells of private memory which pages there are, and that none of it is to be sent."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.kind = "later"

    def scan(self, *, protect: bool = True) -> Mapping[int, tuple[Range, ...]]:
        del protect
        return {}

    def scan_last(self) -> Mapping[int, Last]:
        return {pid: each._replace(written=()) for pid, each in self._tracker.scan_last().items()}

    def size_bytes(self) -> int:
        """Return how much is to be pulled, as it is now."""
        return bytes_of(self._tracker.scan(protect=False))

    def close(self) -> None:
        self._tracker.close()


def check_can_pull(offer: Offer, accepted: Accept) -> None:
    """Refuse a target that would have to pull memory and cannot.  Raises: Unsupported."""
    if offer.is_later and not accepted.can_pull:
        raise Unsupported(
            "cannot migrate with `--mode post-copy`: the insulad of the other host, or its spawner, is too old",
            hint="upgrade insula there, or --mode pre-copy",
        )


def serve_pull(runtime: Runtime, message: Pull, *, wire: Wire, peer: str) -> None:
    """Give a target the pages that it asks for, until it has enough.

    Raises: MemoryLost if it can never have them from here.
    """
    _check(runtime, message, peer=peer)
    if ZSTD in message.unpacks:
        wire.compress()
    with ExitStack() as held:
        lender = held.enter_context(_Lender(runtime, message))
        wire.send(Answer())
        while True:
            try:
                wanted = wire.receive()
            except MigrationFailed:  # it comes again, if it needs more
                return
            match wanted:
                case Want():
                    _check(runtime, message, peer=peer)
                    fault(Point.SOURCE_PULL)
                    pages = lender.read(wanted)
                    wire.send(Answer())
                    wire.send_stream((pages,))
                case Ended():
                    return
                case other:
                    raise ProtocolError(f"cannot go on: the peer sent {type(other).__name__}")


def _check(runtime: Runtime, message: Pull, *, peer: str) -> ContainerRecord:
    try:
        record = runtime.store.get_container(message.container)
    except ContainerNotFound:
        raise MemoryLost(
            f"cannot give memory of `{message.container[:12]}`: it is not here any more"
        ) from None
    if record.owner == peer and record.generation == message.generation:
        return record
    is_given = (
        record.owner == runtime.host_name
        and record.generation == message.generation - 1
        and record.status is Status.MIGRATING
        and runtime.store.read_journal(LEAVING + record.id) == peer.encode()
    )
    if not is_given:
        raise MemoryLost(f"cannot give memory of `{message.container[:12]}` to `{peer}`: it is not its owner")
    return record


class _Lender:
    """The memory of all processes of a frozen container.  Use as a context manager."""

    def __init__(self, runtime: Runtime, message: Pull) -> None:
        self._group = runtime.group(runtime.store.get_container(message.container))
        self._handles: dict[int, int] = {}

    def __enter__(self) -> "_Lender":
        with ExitStack() as undo:
            undo.callback(self._close)
            for pid, inside in self._processes():
                self._handles[inside] = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            if not self._handles:
                raise MemoryLost("cannot give its memory: its processes have ended")
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for each in self._handles.values():
            os.close(each)
        self._handles.clear()

    def _processes(self) -> Iterator[tuple[int, int]]:
        # They are frozen, so that no id changes its process meanwhile; killed ones are noticed when they are read.
        for pid in self._group.pids() if self._group.exists() else ():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                inside = inner_pid(pid)
                if inside is not None:
                    yield pid, inside

    def read(self, wanted: Want) -> bytes:
        """Read pages, all of them.  Raises: MemoryLost; ProtocolError for what cannot be asked for."""
        if not 0 < wanted.pages <= MAX_WANTED or wanted.start % PAGE_BYTES or not 0 < wanted.start < 1 << 47:
            raise ProtocolError(f"cannot give {wanted.pages} pages at {wanted.start:#x}: there are none")
        handle = self._handles.get(wanted.pid)
        if handle is None:
            raise MemoryLost(f"cannot give memory of process {wanted.pid}: it has ended")
        data = bytearray(wanted.pages * PAGE_BYTES)
        view = memoryview(data)
        done = 0
        while done < len(data):
            step = _read_some(handle, view[done:], address=wanted.start + done)
            if not step:  # never zeros in place of data
                raise MemoryLost(f"cannot read memory of process {wanted.pid} at {wanted.start + done:#x}")
            done += step
        return bytes(data)


def _read_some(handle: int, view: memoryview, *, address: int) -> int:
    try:
        return os.preadv(handle, [view], address)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return 0

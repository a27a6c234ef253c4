# SPDX-License-Identifier: Apache-2.0
"""The process that fills the memory of a restored container while it runs already.

It takes the place of `criu lazy-pages` (whose pages must lie in one file in the order of addresses, so that all memory would
have to be copied once more while the program stands): pages come from a sparse store in which the byte at `SLOT * SLOT_BYTES
+ address` is the memory's byte at that address, in whatever order they were brought.

    criu restore ──connect──► lazy-pages.socket:  { i32 pid, 1 byte + userfaultfd } per process, i32 -pid per zombie
                 ──────────►  "RSTF": the program runs; from here on it is also filled without being asked
    a fault      ──────────►  that page and those around it
    supply       ◄─────────►  of a restore whose store is empty at first: pages are asked for, and come (`supply.py`)
    keeper       ◄──────────  a copy of every userfaultfd: with all copies gone, missing pages would read as zeros

Ends with 0 when nothing is missing any more.  Standard library only.
Sources: CRIU's `criu/uffd.c`; `kernel/missing_pages.py`;
"""

import contextlib
import errno
import mmap
import os
import resource
import selectors
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping

from insula.boot.supply import Link, Lost, Supply
from insula.kernel import criu_images, criu_unseen, libc, missing_pages
from insula.kernel.missing_pages import SLOT_BYTES, Event, Gone, Kind
from insula.kernel.pieces import Piece, Pieces

SOCKET_NAME = "lazy-pages.socket"
CHUNK_BYTES = 512 << 10
"""As much is filled between two looks at who waits."""
AROUND_BYTES = 64 << 10
"""Whose page is missing gets its neighbours, too."""
PULLED_BYTES = 256 << 10
"""The same for a page that is still on another host: what a round trip costs counts more than these."""
PAGE_BYTES = criu_images.PAGE_BYTES
_PID = struct.Struct("=i")
_FINISHED = 0x52535446
_PASS_SECONDS = 10.0
AGAIN_SECONDS = 0.001
"""The kernel takes nothing while a change of mappings is under way: until who makes it has run on after we were told of it."""


class Progress:
    """What the spawner may know at any time, in memory that both share."""

    _LAYOUT = struct.Struct("=QQQ")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    def write(self, *, memories: int, left_bytes: int, is_running: bool) -> None:
        self._LAYOUT.pack_into(self._shared, 0, memories, left_bytes, is_running)

    def read(self) -> tuple[int, int, bool]:
        """Return how many memories there are, how many bytes are missing, whether the program runs already."""
        memories, left_bytes, is_running = self._LAYOUT.unpack_from(self._shared, 0)
        return memories, left_bytes, bool(is_running)

    def fail(self, reason: str) -> None:
        data = reason.encode(errors="replace")[:500]
        self._shared[64 : 64 + len(data)] = data

    @property
    def failure(self) -> str:
        return self._shared[64:600].rstrip(b"\0").decode(errors="replace")


class Memory:
    """The memory of one process, with what is missing in it."""

    def __init__(self, handle: int, missing: Pieces, *, slot: int, has_moved: bool = False) -> None:
        self.handle = handle
        self.missing = missing
        self.slot = slot
        self.has_moved = has_moved
        """Whether something lies elsewhere than where it lay when it was dumped."""
        self.waiting: dict[int, None] = {}
        """Pages that somebody waits for, in their order, which could not be brought yet."""

    def cut_sources(self, start: int, end: int) -> list[Piece]:
        """Take out what is missing of a range of the store."""
        base = self.slot * SLOT_BYTES
        if self.has_moved:
            return self.missing.cut_sources(start, end)
        return self.missing.cut(start - base, end - base)


class Filler:
    """All memories of one container.

    listener: where CRIU connects.  store: the pages.  keeper: takes the copies.  supply: of a store that is empty at first.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        store: int,
        images: int,
        keeper: socket.socket,
        slots: Mapping[int, int],
        progress: Progress,
        supply: Supply | None = None,
    ) -> None:
        self._supply = supply
        self._listener = listener
        self._store = store
        self._images = images
        self._keeper = keeper
        self._slots = slots
        self._progress = progress
        self._selector = selectors.DefaultSelector()
        self._memories: dict[int, Memory] = {}
        self._is_running = False
        self._may_free = True
        self._is_refused = False
        """Something that somebody waits for could not be brought now: no event will tell when it can."""
        self._seen = 0
        self._buffer = bytearray(CHUNK_BYTES)
        self._address = libc.address_of(self._buffer)

    def run(self) -> None:
        """Serve until nothing is missing.  Raises: OSError, ValueError; EOFError if CRIU gave up; Lost."""
        connection, _ = self._listener.accept()
        self._listener.close()
        connection.settimeout(_PASS_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ, None)
        for link in self._supply.links if self._supply else ():
            self._selector.register(link, selectors.EVENT_READ, link)
        while not (self._is_running and not self._memories):
            if self._supply and self._is_running:
                self._supply.ask_rest()
            may_fill = self._is_running and (self._supply is None or self._supply.is_complete)
            ready = self._selector.select(0 if may_fill else AGAIN_SECONDS if self._is_refused else None)
            for key, _events in ready:
                if key.data is None:
                    self._hear(connection)
                elif isinstance(key.data, Link):
                    self._hear_link(key.data)
                elif key.fd in self._memories:
                    self._serve(key.data)
            if self._is_refused:
                self._answer_all_waiting()
            if may_fill and not ready:
                self._fill_some()
            self._tell()

    def _hear_link(self, link: Link) -> None:
        arrived = link.hear()
        if arrived is not None and self._supply is not None:
            start, end = arrived[0], sum(arrived)
            self._supply.forget(start, end)
            self._spread(start, end)
            if self._supply.take_refused():
                self._answer_all_waiting()

    def _spread(self, start: int, end: int) -> None:
        """Bring what has come into the store to whoever lacks it: a process, and those that it has forked since."""
        left = 0
        for memory in list(self._memories.values()):
            if memory.slot == start // SLOT_BYTES:
                try:
                    for piece in memory.cut_sources(start, end):
                        left += not self._copy(memory, piece)
                    self._answer_waiting(memory)
                except Gone:
                    self._drop(memory)
        if not left:  # also what came twice, or is not missing any more
            self._free(Piece(start, end, start), end - start)

    def _tell(self) -> None:
        left = sum(each.missing.total_bytes for each in self._memories.values())
        self._progress.write(memories=self._seen, left_bytes=left, is_running=self._is_running)

    def _hear(self, connection: socket.socket) -> None:
        data = connection.recv(_PID.size, socket.MSG_WAITALL)
        if len(data) != _PID.size:
            if not self._is_running:
                raise EOFError("CRIU ended before the restore did")
            self._selector.unregister(connection)
            connection.close()
            return
        number = _PID.unpack(data)[0]
        if number == _FINISHED:
            self._is_running = True
        elif number > 0:
            _byte, handles, _flags, _from = socket.recv_fds(connection, 1, 1)
            if len(handles) != 1:
                raise EOFError("CRIU sent no userfaultfd")
            self._take(Memory(handles[0], self._missing_of(number), slot=self._slots.get(number, 0)))

    def _take(self, memory: Memory) -> None:
        socket.send_fds(self._keeper, [b"u"], [memory.handle])
        self._memories[memory.handle] = memory
        self._seen += 1
        self._selector.register(memory.handle, selectors.EVENT_READ, memory)

    def _missing_of(self, pid: int) -> Pieces:
        """Read what a process lacks out of CRIU's images."""
        listed, hidden = criu_unseen.lazy_lists(self._images, pid)
        base = self._slots[pid] * SLOT_BYTES if listed or hidden else 0
        missing = Pieces.of(_ends_of(sorted(hidden)), shift=base)
        for start, end in _ends_of(listed):
            missing.add(start, end, source=base + start)
        if self._supply:
            for start, end in _ends_of(sorted((*listed, *hidden))):
                self._supply.expect(base + start, base + end)
        return missing

    def _drop(self, memory: Memory) -> None:
        self._selector.unregister(memory.handle)
        del self._memories[memory.handle]
        os.close(memory.handle)
        if self._supply and all(each.slot != memory.slot for each in self._memories.values()):
            self._supply.forget(memory.slot * SLOT_BYTES, (memory.slot + 1) * SLOT_BYTES)

    def _serve(self, memory: Memory) -> None:
        try:
            for event in missing_pages.read_events(memory.handle):
                self._handle(memory, event)
            self._answer_waiting(memory)
        except Gone:
            self._drop(memory)

    def _answer_all_waiting(self) -> None:
        self._is_refused = False
        for memory in list(self._memories.values()):
            try:
                self._answer_waiting(memory)
            except Gone:
                self._drop(memory)

    def _answer_waiting(self, memory: Memory) -> None:
        again, memory.waiting = memory.waiting, {}
        for page in again:
            self._answer(memory, page)

    def _handle(self, memory: Memory, event: Event) -> None:
        missing = memory.missing
        match event.kind:
            case Kind.FAULT:
                self._answer(memory, event.second // PAGE_BYTES * PAGE_BYTES)
            case Kind.FORK:
                self._may_free = False  # the child reads the same pages once more
                handle = event.first & 0xFFFFFFFF
                self._take(Memory(handle, missing.copy(), slot=memory.slot, has_moved=memory.has_moved))
            case Kind.REMAP:
                start, to, length = event.first, event.second, event.third
                memory.has_moved = True
                moved = missing.cut(start, start + length)
                missing.cut(to, to + length)
                for piece in moved:
                    missing.add(piece.start + to - start, piece.end + to - start, source=piece.source)
            case Kind.REMOVE | Kind.UNMAP:
                for piece in missing.cut(event.first, event.second):
                    if self._supply and self._may_free:
                        self._supply.forget(piece.source, piece.source + piece.end - piece.start)

    def _answer(self, memory: Memory, page: int) -> None:
        """Bring a page that somebody waits for, first, and then those around it."""
        missing, start = memory.missing, page // AROUND_BYTES * AROUND_BYTES
        wanted = missing.within(page, page + PAGE_BYTES)
        if not wanted:
            done, reason = missing_pages.zero(memory.handle, page, length=PAGE_BYTES)
            if reason == errno.EAGAIN:
                self._refuse(memory, page)
            elif not done:
                missing_pages.wake(memory.handle, page, length=PAGE_BYTES)
            return
        if self._supply and self._supply.lacks(wanted[0]):
            memory.waiting[page] = None
            start = page // PULLED_BYTES * PULLED_BYTES
            around = missing.within(start, start + PULLED_BYTES)
            self._supply.ask(sorted(around, key=lambda each: not each.start <= page < each.end))
            return
        missing.cut(page, page + PAGE_BYTES)
        if not self._copy(memory, wanted[0]):
            self._refuse(memory, page)
            return
        for piece in missing.within(start, start + AROUND_BYTES):
            if not (self._supply and self._supply.lacks(piece)):
                missing.cut(piece.start, piece.end)
                self._copy(memory, piece)

    def _refuse(self, memory: Memory, page: int) -> None:
        memory.waiting[page] = None
        self._is_refused = True

    def _fill_some(self) -> None:
        for memory in list(self._memories.values()):
            piece = memory.missing.cut_last(CHUNK_BYTES)
            try:
                if piece is not None:
                    self._copy(memory, piece)
                    return
            except Gone:
                pass
            self._drop(memory)

    def _copy(self, memory: Memory, piece: Piece) -> bool:
        """Fill a piece.  Returns: False if some of it is missing again, until what happened was read."""
        length = piece.end - piece.start
        if os.preadv(self._store, [memoryview(self._buffer)[:length]], piece.source) != length:
            raise EOFError("the store of pages is cut short")
        done, step = 0, length
        while done < length:
            step = min(step, length - done)
            copied, reason = missing_pages.copy(
                memory.handle, piece.start + done, source=self._address + done, length=step
            )
            done += copied
            if reason == errno.EEXIST:
                missing_pages.wake(memory.handle, piece.start + done, length=PAGE_BYTES)
                done += PAGE_BYTES
            elif reason == errno.ENOENT and step > PAGE_BYTES:  # the end of a mapping lies within
                step = max(PAGE_BYTES, step // 2 // PAGE_BYTES * PAGE_BYTES)
                continue
            elif reason == errno.ENOENT and self._is_running:  # unmapped
                done += PAGE_BYTES
            elif reason:  # there is something to read, or it is not registered yet
                memory.missing.add(piece.start + done, piece.end, source=piece.source + done)
                break
            step = length
        self._free(piece, min(done, length))
        return done >= length

    def _free(self, piece: Piece, length: int) -> None:
        if self._may_free and length:
            with mmap.mmap(self._store, length, offset=piece.source) as window:
                window.madvise(mmap.MADV_REMOVE)


def _ends_of(pages: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Turn address and number of pages into start and end."""
    return ((start, start + count * PAGE_BYTES) for start, count in pages)


def close_all_but(kept: tuple[int, ...]) -> None:
    """Close every descriptor but these and standard error."""
    first = 0
    for descriptor in sorted({2, *kept}):
        if descriptor > first:
            libc.close_range(first, descriptor - 1, 0)
        first = descriptor + 1
    libc.close_range(first, 0xFFFFFFFF, 0)


def serve(
    listener: socket.socket,
    *,
    store: int,
    images: int,
    keeper: socket.socket,
    slots: Mapping[int, int],
    progress: Progress,
    supply: Supply | None = None,
) -> int:
    """Fill, as a process of its own.  Returns: the exit code."""
    with contextlib.suppress(OSError, ValueError):
        _raise_descriptor_limit()
    try:
        Filler(
            listener,
            store=store,
            images=images,
            keeper=keeper,
            slots=slots,
            progress=progress,
            supply=supply,
        ).run()
    except Lost as error:
        progress.fail(str(error))
        return 1
    except (OSError, ValueError, EOFError, KeyError) as error:
        progress.fail(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

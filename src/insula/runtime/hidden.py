# SPDX-License-Identifier: Apache-2.0
"""Hide from a lazy dump of CRIU the memory that we carry ourselves, so that the pause does not grow with it.

CRIU splices every page that it finds into pipes, for a lazy server that never serves (130 ms for each GB).  It finds them in
/proc/PID/pagemap.  In its mount namespace a sparse file of ours lies over that: a hole says that there is no page.

    launch         `boot/engine.py` mounts a file over each process's pagemap, and lets CRIU know a kernel without the ioctl
                   PAGEMAP_SCAN, which no file of ours could answer; another one over its smaps (`mappings.py`), which
                   leaves out address space that is only reserved
    network-lock   all stand, neither was read: `show` copies the entries of what CRIU must dump itself into the files
    post-dump      the caller writes beside CRIU's images which pages there are that CRIU did not list (`migrate/absent.py`),
                   and calls `check` before it is too late

Hidden are private anonymous mappings (CRIU's `vma_entry_can_be_lazy`) but the page at each thread's stack pointer, which CRIU
means not to list as lazy (its `is_stack`, which in 4.2 compares the wrong bits).  A process that has locked memory or a shadow stack hides nothing.  What is not hidden
(a process that was born later, a kernel that refuses the mount) is merely as slow as ever: the two lists may overlap.

Out of scope: where the pages are sent (`migrate/`).  Sources: CRIU's `criu/pagemap-cache.c`, `criu/mem.c`; proc_pid_syscall(5).
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ClassVar, NamedTuple, Self

from insula.kernel import mount
from insula.kernel.pagemap import (
    ENTRY_BYTES,
    PAGE_BYTES,
    PageMap,
    Range,
    file_mappings,
    merge,
    parse_maps,
    private_mappings,
    subtract,
)
from insula.kernel.whole import write_at
from insula.model.errors import MigrationFailed
from insula.runtime.mappings import Described, Reserve, describe, reserved_bytes

LOG = logging.getLogger(__name__)

SMALL_PAGES = 64
"""A mapping below that is not worth hiding."""
MIN_BYTES = 32 << 20
"""Of a container's memory below which CRIU is fast enough."""
MIN_PROCESS_BYTES = 4 << 20
MIN_RESIDENT_BYTES = 8 << 20
"""Of a process below which the kernel makes its smaps fast enough: 0.1 ms."""
BYTES_PER_GAIN = 40
"""Reserved addresses that cost as much as one byte of memory saves: CRIU reads 8 bytes for each page that could be."""
MUCH_RESERVED_BYTES = 1 << 37
"""Of a process, which has nobody touch it: CRIU would need a list of 512 MiB, whatever there is in it (`migrate/reserved.py`)."""
_FILE_BYTES = 1 << 47
"""More than any address has entries: CRIU would read on and on at an early end."""
_GONE = (FileNotFoundError, ProcessLookupError)


class _Size(NamedTuple):
    anonymous: int
    resident: int
    reserved: int
    may_hide: bool


class Seen(NamedTuple):
    """A process's private memory."""

    hidden: tuple[Range, ...]
    anonymous: tuple[Range, ...]
    """All mappings, those that are hidden among them."""
    of_files: tuple[Range, ...]
    reserves: tuple[Reserve, ...] = ()
    """Of its address space, not shown at all."""


class HiddenMemory:
    """Page maps for one dump.  Use as a context manager.

    Nothing is hidden where it would not help: `descriptor` is -1 then.
    """

    _distrusted: ClassVar[bool] = False

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids, self._to_describe = ((), ()) if self._distrusted else _worthwhile(pids)
        self._folder = -1
        self.descriptor = -1
        """The mount that CRIU's mount namespace gets."""
        self.seen: Mapping[int, Seen] = {}
        """How much CRIU saw of each process, by its pid here."""
        self.described: dict[int, Described] = {}
        """What CRIU is told of mappings without asking the kernel, by process."""

    @classmethod
    def is_distrusted(cls) -> bool:
        """Whether this CRIU is shown everything."""
        return cls._distrusted

    def __enter__(self) -> Self:
        if self._pids:
            try:
                self._make()
            except OSError as error:
                self._close()
                LOG.warning("memory is not hidden from CRIU", extra={"fields": {"reason": str(error)}})
        return self

    def _make(self) -> None:
        self.descriptor = mount.tmpfs(mode=0o700, source="insula-pagemaps")
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor)
        for pid in self._pids:
            with self._file(str(pid), os.O_CREAT | os.O_EXCL) as file:
                file.truncate(_FILE_BYTES)
        for pid in self._to_describe:
            with contextlib.suppress(*_GONE):
                self.described[pid] = describe(pid)
                self._file(_smaps_name(pid), os.O_CREAT | os.O_EXCL).close()

    def _file(self, name: str, flags: int = 0) -> BinaryIO:
        flags |= os.O_WRONLY | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, 0o600, dir_fd=self._folder), "wb", buffering=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for each in (self.descriptor, self._folder):
            if each >= 0:
                os.close(each)
        self.descriptor = self._folder = -1

    def blame(self, error: Exception) -> None:
        """Hear that a dump failed: if its page maps were the reason, nothing is hidden any more as long as insulad runs."""
        if self.seen and any(name in str(error).lower() for name in ("pagemap", "smaps")):
            HiddenMemory._distrusted = True
            LOG.warning("this CRIU is shown the kernel's page maps", extra={"fields": {"reason": str(error)}})

    def show(self) -> None:
        """Have CRIU find what it must dump itself, now that every process stands."""
        seen: dict[int, Seen] = {}
        for pid in {*self._pids, *self.described} if self._folder >= 0 else ():
            with contextlib.suppress(*_GONE):
                with open(f"/proc/{pid}/maps", "rb") as file:
                    maps = file.read()
                may_hide = _size_of(pid).may_hide
                if pid in self._pids:
                    seen[pid] = self._show_pages(pid, maps, may_hide=may_hide)
                if pid in self.described:
                    reserves = self._show_mappings(pid, maps, may_describe=may_hide)
                    if pid in seen:
                        seen[pid] = seen[pid]._replace(reserves=reserves)
        self.seen = seen

    def _show_pages(self, pid: int, maps: bytes, *, may_hide: bool) -> Seen:
        hidden = _hidden_of(pid, maps) if may_hide else ()
        with PageMap(pid) as pages, self._file(str(pid)) as file:
            for each in merge(subtract(private_mappings(maps), hidden)):
                for address, entries in pages.entries(each):
                    write_at(file.fileno(), entries, address // PAGE_BYTES * ENTRY_BYTES)
        return Seen(hidden, parse_maps(maps), file_mappings(maps))

    def _show_mappings(self, pid: int, maps: bytes, *, may_describe: bool) -> tuple[Reserve, ...]:
        """Returns: what is left out."""
        described = self.described.pop(pid)
        now = described.of_now(maps) if may_describe else None
        if now is not None:
            self.described[pid] = shown = now
        else:
            shown = describe(pid)
        reserves = shown.reserves() if pid in self._pids else ()
        with self._file(_smaps_name(pid)) as file:
            write_at(file.fileno(), shown.smaps(without=reserves), 0)
        return reserves

    def check(self) -> None:
        """Ask the kernel whether what CRIU was told of mappings is true; may be called beside CRIU.

        Raises: MigrationFailed if not, or if a process has ended.
        """
        for pid, described in self.described.items() if self.seen else ():
            try:
                described.check(describe(pid))
            except _GONE:
                raise MigrationFailed(f"cannot move process {pid}: it has ended") from None


def _smaps_name(pid: int) -> str:
    return f"{pid}.smaps"


def _hidden_of(pid: int, maps: bytes) -> tuple[Range, ...]:
    large = [each for each in parse_maps(maps) if each.pages >= SMALL_PAGES]
    stacks = _stack_pages(pid)
    return () if stacks is None else subtract(large, stacks)


def _stack_pages(pid: int) -> Sequence[Range] | None:
    """Return the page at each thread's stack pointer; None if one does not stand."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if len(words) < 3:  # "running"
            return None
        found.append(Range(int(words[-2], 16) // PAGE_BYTES * PAGE_BYTES, 1))
    return merge(found)


def _worthwhile(pids: Iterable[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose the processes whose memory is hidden, and those whose mappings are described; none if CRIU's own way is as fast."""
    sizes: dict[int, _Size] = {}
    for pid in sorted(set(pids)):
        with contextlib.suppress(*_GONE):
            sizes[pid] = _size_of(pid)
    chosen = {
        pid: each for pid, each in sizes.items() if each.may_hide and each.anonymous >= MIN_PROCESS_BYTES
    }
    left_out = {pid: _left_out_bytes(pid) for pid, each in sizes.items() if each.may_hide}
    gain = sum(each.anonymous for each in chosen.values())
    cost = (sum(each.reserved for each in sizes.values()) - sum(left_out.values())) // BYTES_PER_GAIN
    reserving = {pid for pid, size in left_out.items() if size >= MUCH_RESERVED_BYTES}
    if gain < MIN_BYTES or gain <= cost:
        return tuple(reserving), tuple(reserving)
    large = {pid for pid in sizes if sizes[pid].resident >= MIN_RESIDENT_BYTES}
    return tuple({*chosen, *reserving}), tuple(large | reserving)


def much_left_out_bytes(pid: int) -> int:
    """Return how much of a process's address space CRIU is surely not shown.  Raises: OSError if it has ended."""
    if HiddenMemory.is_distrusted() or not _size_of(pid).may_hide:
        return 0
    size = _left_out_bytes(pid)
    return size if size >= MUCH_RESERVED_BYTES else 0


def _left_out_bytes(pid: int) -> int:
    try:
        return reserved_bytes(Path(f"/proc/{pid}/maps").read_bytes())
    except _GONE:
        return 0


def _size_of(pid: int) -> _Size:
    fields: dict[str, str] = {}
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            name, _colon, value = line.partition(":")
            fields[name] = value.strip()

    def size(name: str) -> int:
        return int(fields.get(name, "0").split()[0]) * 1024

    may_hide = size("VmLck") == 0 and "shstk" not in fields.get("x86_Thread_features", "")
    anonymous = size("RssAnon") + size("VmSwap")
    return _Size(anonymous, anonymous + size("RssFile") + size("RssShmem"), size("VmSize"), may_hide)

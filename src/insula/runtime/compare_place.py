# SPDX-License-Identifier: Apache-2.0
"""What a dump says of where its processes run must lead nowhere else: namespaces, mounts and filters, before CRIU starts.

CRIU makes a namespace only if the dump says that its processes were not in CRIU's own; a forged one would leave them in the
host's.  It binds parts of mounts by their paths while the host's files still lie above them, so that `..`, or a link in a file
system of the container's, leads to the host.  And it installs whatever filter it finds.  Beside this: `compare.py`.

Out of scope: paths of files, which are opened inside the container's mounts, and cgroups, which CRIU is told to leave alone.
Sources: CRIU's `criu/pstree.c` (`get_clone_mask`), `criu/mount-v2.c` (`do_bind_mount_v2`), `criu/seccomp.c`; ADR 14.
"""

import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from insula.boot.birth import filter_for
from insula.boot.protocol import StartPlan
from insula.kernel import protobuf
from insula.kernel.criu_images import read_image
from insula.model.errors import CheckpointAltered
from insula.runtime.compare import CORE_MAGIC, FILTER_MODE, TASK, THREAD, check_rights
from insula.runtime.image_fields import (
    COMMON_MAGIC,
    INVENTORY_MAGIC,
    Fields,
    entries_of,
    entry_of,
    fields_of,
    message,
    number,
)

_IDS_NAME = re.compile(r"ids-[0-9]+\.img")
_MOUNTS_NAME = re.compile(r"mountpoints-[0-9]+\.img")
_PROCESSES, _FILTERS = "pstree.img", "seccomp.img"
_IDS_MAGIC, _MOUNTS_MAGIC, _PROCESSES_MAGIC, _FILTERS_MAGIC = 0x54432030, 0x55563928, 0x50273030, 0x64413049

# inventory_entry; task_kobj_ids_entry.
_HOST_IDS = 3
_NAMESPACES = {5: "pid", 6: "network", 7: "ipc", 8: "uts", 9: "mount", 10: "user"}

# mnt_entry, and what a mount of insula's own is a part of.
_KIND, _DEVICE, _ROOT, _PLACE, _EXTERNAL = 1, 3, 6, 7, 18
_PROC = 1
_PARTS_OF_PROC = frozenset(("/bus", "/fs", "/irq", "/sys", "/sysrq-trigger"))
_DEVICES, _PARTS_OF_DEVICES = "dev", frozenset(("/null", "/.empty"))

# thread_core_entry; seccomp_entry; seccomp_filter.
_FILTER = 12
_CODE, _BEFORE, _FLAGS = 1, 2, 3
_FOR_ALL_THREADS = 1
"""SECCOMP_FILTER_FLAG_TSYNC"""


@contextmanager
def held_to(plan: StartPlan, images: int, *, inventory: str) -> Iterator[None]:
    """Look at a whole dump before it is restored as planned; for as long as it is, its filters are at least the plan's.

    images: a folder of images in clear.    inventory: the name of the first of them.
    Raises: CheckpointAltered naming what it would have; OSError.
    """
    program = plan.program
    capabilities = frozenset(program.capabilities)
    check_rights(images, capabilities=capabilities, has_filter=program.seccomp)
    check_place(images, inventory=inventory, may_mount="SYS_ADMIN" in capabilities)
    before = None
    if program.seccomp:
        code = filter_for(program.capabilities, program.calls, is_logged=program.is_logged)
        before = hold_filters(images, program=code)
    try:
        yield
    finally:
        if before is not None:  # it may be sealed
            _write(images, before)


def check_place(images: int, *, inventory: str, may_mount: bool) -> None:
    """Look at the namespaces and mounts of a dump.

    may_mount: its programs can have bound parts of their file systems (SYS_ADMIN).
    Raises: CheckpointAltered; OSError.
    """
    try:
        _check_namespaces(images, inventory)
        _check_mounts(images, may_mount=may_mount)
    except ValueError as error:
        raise CheckpointAltered(f"cannot restore the container: {error}") from error


def _check_namespaces(images: int, inventory: str) -> None:
    hosts = fields_of(message(entry_of(images, inventory, magic=INVENTORY_MAGIC), _HOST_IDS))
    for name in _matching(images, _IDS_NAME):
        own = entry_of(images, name, magic=_IDS_MAGIC)
        for field, kind in _NAMESPACES.items():
            if number(own, field) == number(hosts, field):
                raise ValueError(f"a process would be in the host's {kind} namespace")


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: int
    device: int
    """Which file system, as all mounts of one say."""
    root: str
    """What of the file system."""
    place: str
    external: str

    @property
    def is_part(self) -> bool:
        """Whether CRIU looks a path up to make it."""
        return not self.external and self.root != "/" and self.place != "/"


def _check_mounts(images: int, *, may_mount: bool) -> None:
    mounts = [
        _mount(fields_of(entry))
        for name in _matching(images, _MOUNTS_NAME)
        for entry in entries_of(images, name, magic=_MOUNTS_MAGIC)
    ]
    for each in mounts:
        if any(
            not path.startswith("/") or ".." in PurePosixPath(path).parts for path in (each.root, each.place)
        ):
            raise ValueError(f"its mount at `{each.place[:80]}` would lead out of it")
        beside = [other for other in mounts if other.device == each.device]
        if each.is_part and not _is_own_part(each, beside, may_mount=may_mount):
            raise ValueError(f"its mount at `{each.place[:80]}` would be of another place")


def _mount(fields: Fields) -> _Mount:
    external = message(fields, _EXTERNAL).decode() if _EXTERNAL in fields else ""
    root, place = (message(fields, field).decode() for field in (_ROOT, _PLACE))
    return _Mount(number(fields, _KIND), number(fields, _DEVICE), root, place, external)


def _is_own_part(part: _Mount, beside: Sequence[_Mount], *, may_mount: bool) -> bool:
    """Whether no link of the container's can lie on the way.  beside: all mounts of the file system."""
    if any(each.kind == _PROC for each in beside):
        # Of proc `/self/root` and its like lead to whoever restores.
        return part.root in _PARTS_OF_PROC and all(
            each.kind == _PROC and not each.external and each.place != "/" for each in beside
        )
    if part.root in _PARTS_OF_DEVICES and any(each.external == _DEVICES for each in beside):
        return all(each.external == _DEVICES or each.is_part for each in beside)
    return may_mount


def hold_filters(images: int, *, program: bytes) -> bytes | None:
    """See to it that every process of a dump gets this seccomp program at the least.

    One that was dumped under another insula has another program, and gets both: of two the stricter verdict counts.
    After `check_rights`, by which each of them has a filter.
    Returns: the image as it was, if it was changed.  Raises: CheckpointAltered; OSError.
    """
    try:
        filters = [fields_of(value) for value in _filters(images)]
        for index, is_shared in _first_filters(images):
            _check_chain(filters, index, is_shared=is_shared)
        fixed = _with_program(filters, program)
    except ValueError as error:
        raise CheckpointAltered(f"cannot restore the seccomp filters: {error}") from error
    if fixed is None:
        return None
    before = read_image(images, _FILTERS)
    _write(images, struct.pack("<III", COMMON_MAGIC, _FILTERS_MAGIC, len(fixed)) + fixed)
    return before


def _filters(images: int) -> list[bytes]:
    entry = entry_of(images, _FILTERS, magic=_FILTERS_MAGIC)
    return [value for value in entry.get(1, ()) if isinstance(value, bytes)]


def _first_filters(images: int) -> Iterator[tuple[int, bool]]:
    """Yield each thread's last filter, and whether other threads rely on it."""
    for entry in entries_of(images, _PROCESSES, magic=_PROCESSES_MAGIC):
        numbers = fields_of(entry).get(5, ())
        threads = [_thread(images, each) for each in numbers]
        silent = [each for each in threads if each is not None and FILTER_MODE not in each]
        for each in threads:
            if each is not None and FILTER_MODE in each:
                yield number(each, _FILTER), bool(silent)


def _thread(images: int, thread: int | bytes) -> Fields | None:
    if not isinstance(thread, int):
        raise ValueError("an image is none")
    core = entry_of(images, f"core-{thread}.img", magic=CORE_MAGIC)
    return fields_of(message(core, THREAD)) if THREAD in core or TASK not in core else None


def _check_chain(filters: Sequence[Fields], index: int, *, is_shared: bool) -> None:
    for _ in filters:
        if index >= len(filters):
            break
        each = filters[index]
        if is_shared and not number(each, _FLAGS) & _FOR_ALL_THREADS:
            raise ValueError("a thread would have none")
        if _BEFORE not in each:
            return
        index = number(each, _BEFORE)
    raise ValueError("an image is none")


def _with_program(filters: Sequence[Fields], program: bytes) -> bytes | None:
    """Return the image with the program before every chain that does not begin with it; None if all do."""
    made = [_encoded(each) for each in filters]
    added: dict[int, int] = {}
    for place, each in enumerate(filters):
        if _BEFORE in each or message(each, _CODE) == program:
            continue
        flags = number(each, _FLAGS) & _FOR_ALL_THREADS
        if flags not in added:
            added[flags] = len(made)
            made.append(protobuf.encode([(_CODE, program), (_FLAGS, flags)]))
        made[place] = _encoded({**each, _BEFORE: [added[flags]]})
    return protobuf.encode([(1, each) for each in made]) if added else None


def _encoded(fields: Mapping[int, Sequence[int | bytes]]) -> bytes:
    return protobuf.encode([(field, value) for field, values in fields.items() for value in values])


def _write(images: int, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(_FILTERS, flags, dir_fd=images), "wb") as file:
        file.write(data)


def _matching(images: int, pattern: re.Pattern[str]) -> list[str]:
    return sorted(name for name in os.listdir(images) if pattern.fullmatch(name))

# SPDX-License-Identifier: Apache-2.0
"""What CRIU was not shown in a dump (`runtime/hidden.py`), put beside or into its images.

    lazy-PID.img   which of the hidden pages there are: address and number of pages, 64 bits each; PID as in the container
    rest-PID.img   in the same form: further pages that CRIU did not list, which should not be
    mm-PID.img     CRIU's; reserves of address space and guard regions are added to it as CRIU adds them

Standard library only.  Source: CRIU's `images/mm.proto`, `images/vma.proto`, `collect_madv_guards` of `criu/mem.c`.
"""

import itertools
import re
import struct
from array import array
from collections.abc import Iterable

from insula.kernel import protobuf
from insula.kernel.criu_images import PAGE_BYTES, PE_LAZY, decode_pagemap, read_image

_MAGICS, _SIZE = struct.Struct("<II"), struct.Struct("<I")
_MM_MAGICS = (0x54564319, 0x57492820)
_VMAS, _START, _STATUS = 14, 1, 7
_GUARD = 1 << 16
"""VMA_AREA_GUARD: the only flag of such an entry."""
_ANONYMOUS = 1 << 0 | 1 << 9
"""VMA_AREA_REGULAR, VMA_ANON_PRIVATE."""
_RESERVE_FLAGS = 0x02 | 0x20 | 0x4000
"""MAP_PRIVATE, MAP_ANONYMOUS; MAP_NORESERVE: whoever maps it again must not be asked for as much memory."""
_LAZY_NAME = re.compile(r"lazy-([1-9][0-9]*)\.img")
_LAZY = struct.Struct("<QQ")


def lazy_name(pid: int) -> str:
    """Return the name of insula's own list of pages that CRIU did not see (`runtime/hidden.py`)."""
    return f"lazy-{pid}.img"


def lazy_pid(name: str) -> int | None:
    """Return whose such a list is; None if it is none."""
    match = _LAZY_NAME.fullmatch(name)
    return int(match[1]) if match else None


def rest_name(pid: int) -> str:
    """Return the name of the list of those that it should have seen."""
    return f"rest-{pid}.img"


def encode_lazy(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return such a list: address and number of pages, 64 bits each."""
    return array("Q", itertools.chain.from_iterable(ranges)).tobytes()


def lazy_lists(images: int, pid: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return which pages of a process come later: those that CRIU lists, and those that it did not see.

    images: descriptor of the folder.  Raises: OSError; ValueError if a list is not well-formed.
    """
    return listed_pages(images, pid), read_list(images, lazy_name(pid)) + read_list(images, rest_name(pid))


def listed_pages(images: int, pid: int) -> list[tuple[int, int]]:
    """Return which pages CRIU lists as coming later.  Raises: as `lazy_lists`."""
    entries = decode_pagemap(read_image(images, f"pagemap-{pid}.img"))
    return [(each.vaddr, each.pages) for each in entries if each.flags & PE_LAZY]


def read_list(images: int, name: str) -> list[tuple[int, int]]:
    """Return such a list, empty if there is none.  Raises: OSError; ValueError if it is not well-formed."""
    try:
        data = read_image(images, name)
    except FileNotFoundError:
        return []
    if len(data) % _LAZY.size:
        raise ValueError("list of pages: cut short")
    return list(_LAZY.iter_unpack(data))


def add_reserves(data: bytes, reserves: Iterable[tuple[int, int, int]]) -> bytes:
    """Return a `mm-PID.img` that has these private mappings, too, which nobody may touch: start, end, advice.

    Its mappings are sorted by their addresses, as CRIU wants them.  Raises: ValueError if it is no such image.
    """
    begin, end = _mm_body(data)
    fields = list(protobuf.decode(data[begin:end]))
    rest = [(number, value) for number, value in fields if number != _VMAS]
    vmas = [value for number, value in fields if number == _VMAS and isinstance(value, bytes)]
    for start, end_of, advice in reserves:
        values = (start, end_of, 0, 0, 0, _RESERVE_FLAGS, _ANONYMOUS, 1, advice)
        vmas.append(protobuf.encode(enumerate(values, 1)))
    vmas.sort(key=_order)
    body = protobuf.encode([*rest, *((_VMAS, vma) for vma in vmas)])
    return data[: _MAGICS.size] + _SIZE.pack(len(body)) + body + data[end:]


def _order(vma: bytes) -> tuple[bool, int | bytes]:
    fields = dict(protobuf.decode(vma))
    return fields[_STATUS] == _GUARD, fields[_START]


def _mm_body(data: bytes) -> tuple[int, int]:
    begin = _MAGICS.size + _SIZE.size
    if len(data) < begin or _MAGICS.unpack_from(data) != _MM_MAGICS:
        raise ValueError("mm: not such an image")
    end = begin + _SIZE.unpack_from(data, _MAGICS.size)[0]
    if end > len(data):
        raise ValueError("mm: cut short")
    return begin, end


def add_guards(data: bytes, guards: Iterable[tuple[int, int]]) -> bytes:
    """Return a `mm-PID.img` that has these guard regions (MADV_GUARD_INSTALL), unless it has some already.

    Raises: ValueError if it is no such image.
    """
    begin, end = _mm_body(data)
    for number, value in protobuf.decode(data[begin:end]):
        if number == _VMAS and isinstance(value, bytes) and dict(protobuf.decode(value))[_STATUS] == _GUARD:
            return data
    more = b"".join(
        # start, end, pgoff, shmid, prot, flags, status, fd (-1, zigzag)
        protobuf.encode([(_VMAS, protobuf.encode(enumerate((start, end_of, 0, 0, 0, 0, _GUARD, 1), 1)))])
        for start, end_of in ((start, start + pages * PAGE_BYTES) for start, pages in guards)
    )
    return data[: _MAGICS.size] + _SIZE.pack(end - begin + len(more)) + data[begin:end] + more + data[end:]

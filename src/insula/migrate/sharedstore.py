# SPDX-License-Identifier: Apache-2.0
"""Shared memory on its way in: what the rounds bring lies as it comes, and becomes CRIU's image without a copy.

Each area is a file in the folder of images: a page that is new is appended, one that is known overwritten.  CRIU reads the
pages of an area one after the other, in the order in which its pagemap lists them (`criu/shmem.c`, `do_restore_shmem_content`),
so in the end the file gets the name of the image of pages, and the pagemap is written anew, in the file's order.  Only when
pages are in the file that the program has given back since, the wanted ones are copied to another.

What the source says is not believed: places and lengths are checked, and no more is taken than it offered.
Out of scope: what is sent, and when (`shared.py`).
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from insula.kernel import criu_images
from insula.kernel.criu_images import PE_PRESENT, Entry
from insula.kernel.pagemap import PAGE_BYTES, Range, intersect, merge
from insula.kernel.whole import write_at
from insula.model.errors import ProtocolError
from insula.model.migration import SharedPages

MAX_AREAS = 1 << 12
MAX_OFFSET = 1 << 46
MAX_MESSAGE_BYTES = 16 << 20
"""Of one message, whose pages are held until all of them came."""
IMAGE_MODE = 0o644
_COPIED = 1 << 20


@dataclass(slots=True)
class _Area:
    """descriptor: of its file."""

    name: str
    descriptor: int
    places: dict[int, int] = field(default_factory=dict)
    """Number of a page in the area → number of its place in the file."""


class SharedStore:
    """The shared memory of one container.  images: descriptor of the folder of images; limit_bytes: of all pages."""

    def __init__(self, images: int, *, limit_bytes: int) -> None:
        self._images = images
        self._limit_pages = limit_bytes // PAGE_BYTES
        self._areas: dict[int, _Area] = {}

    def close(self) -> None:
        for area in self._areas.values():
            os.close(area.descriptor)
        self._areas.clear()

    def receive(self, message: SharedPages, pieces: Iterable[bytes | bytearray]) -> None:
        """Take the pages of a round.  Raises: ProtocolError for what cannot be, or is more than was offered."""
        total = self._checked_bytes(message)
        area = self._area(message.area)
        data = bytearray()
        for piece in pieces:
            data += piece
            if len(data) > total:
                raise ProtocolError("cannot take shared memory: more bytes than were announced")
        if len(data) != total:
            raise ProtocolError("cannot take shared memory: fewer bytes than were announced")
        view, position = memoryview(data), 0
        for offset, pages in message.pieces:
            self._write(area, offset // PAGE_BYTES, view[position : position + pages * PAGE_BYTES])
            position += pages * PAGE_BYTES

    def _checked_bytes(self, message: SharedPages) -> int:
        for offset, pages in message.pieces:
            is_within = 0 <= offset <= MAX_OFFSET and 0 < pages <= MAX_OFFSET // PAGE_BYTES
            if not is_within or offset % PAGE_BYTES:
                raise ProtocolError(
                    f"cannot take shared memory: no pages can be at {offset:#x} ({pages} pages)"
                )
        total = sum(pages for _offset, pages in message.pieces)
        if sum(len(each.places) for each in self._areas.values()) + total > self._limit_pages:
            raise ProtocolError("cannot take shared memory: it is more than was offered")
        if total * PAGE_BYTES > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"cannot take shared memory: more than {MAX_MESSAGE_BYTES} bytes at once")
        return total * PAGE_BYTES

    def _area(self, number: int) -> _Area:
        if number not in self._areas:
            if len(self._areas) >= MAX_AREAS or number < 0:
                raise ProtocolError("cannot take shared memory: too many areas")
            name = f".shared-{number}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._areas[number] = _Area(name, os.open(name, flags, IMAGE_MODE, dir_fd=self._images))
        return self._areas[number]

    @staticmethod
    def _write(area: _Area, first: int, view: memoryview) -> None:
        count = len(view) // PAGE_BYTES
        places = [area.places.setdefault(first + at, len(area.places)) for at in range(count)]
        start = 0
        for end in range(1, count + 1):
            if end == count or places[end] != places[end - 1] + 1:
                run = view[start * PAGE_BYTES : end * PAGE_BYTES]
                write_at(area.descriptor, run, places[start] * PAGE_BYTES)
                start = end

    def make_image(self, number: int) -> None:
        """Make the images of an area's pages out of what came.  Raises: ProtocolError if a page did not."""
        name = criu_images.shared_pagemap_name(number)
        try:
            data = criu_images.read_image(self._images, name)
            wanted = merge(Range(each.vaddr, each.pages) for each in criu_images.decode_pagemap(data))
            pages_id = criu_images.pages_id_of(data)
        except (OSError, ValueError) as error:
            raise ProtocolError(f"cannot read `{name}`: {error}") from error
        area = self._areas.pop(number, None)
        if area is None:
            raise ProtocolError(f"cannot make the image of area {number}: nothing of it came")
        try:
            runs = list(_runs(area))
            if intersect(wanted, merge(Range(each.vaddr, each.pages) for each in runs)) != wanted:
                raise ProtocolError(f"cannot make the image of area {number}: some of its pages did not come")
            pages = criu_images.pages_name(pages_id)
            if sum(each.pages for each in wanted) == len(area.places):
                os.rename(area.name, pages, src_dir_fd=self._images, dst_dir_fd=self._images)
                self._replace(name, criu_images.encode_pagemap(runs, pages_id=pages_id))
            else:
                self._copy(area, wanted, pages)
                os.unlink(area.name, dir_fd=self._images)
        finally:
            os.close(area.descriptor)

    def _replace(self, name: str, data: bytes) -> None:
        os.unlink(name, dir_fd=self._images)
        descriptor = _create(self._images, name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def _copy(self, area: _Area, wanted: Iterable[Range], name: str) -> None:
        with os.fdopen(_create(self._images, name), "wb", buffering=_COPIED) as file:
            for start, count in wanted:
                for page in range(start // PAGE_BYTES, start // PAGE_BYTES + count):
                    file.write(os.pread(area.descriptor, PAGE_BYTES, area.places[page] * PAGE_BYTES))


def _create(folder: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, IMAGE_MODE, dir_fd=folder)


def _runs(area: _Area) -> Iterator[Entry]:
    """Yield what is in an area's file, in its order."""
    start, count = -1, 0
    for page in area.places:  # in the order of their places
        if page != start + count:
            if count:
                yield Entry(start * PAGE_BYTES, count, PE_PRESENT)
            start, count = page, 0
        count += 1
    if count:
        yield Entry(start * PAGE_BYTES, count, PE_PRESENT)

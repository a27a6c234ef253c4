# SPDX-License-Identifier: Apache-2.0
"""What CRIU was not shown is listed by us; what it should have dumped and did not ends the move."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import criu_images, criu_unseen
from insula.kernel.criu_images import PAGE_BYTES, PE_LAZY, PE_PRESENT, Entry
from insula.kernel.pagemap import Range
from insula.migrate.absent import complete_images, list_hidden
from insula.migrate.memory import MemoryStore
from insula.migrate.precopy import inner_pid
from insula.migrate.track import Last
from insula.model.errors import MigrationFailed, ProtocolError
from insula.runtime.hidden import Seen

BASE = 0x7F00_0000_0000
FILE = 0x7F80_0000_0000
PID = os.getpid()
INSIDE = inner_pid(PID) or 0


@pytest.fixture
def images(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _write(folder: Path, *entries: Entry) -> None:
    data = criu_images.encode_pagemap(list(entries), pages_id=1)
    (folder / f"pagemap-{INSIDE}.img").write_bytes(data)


def _pages(start: int, count: int) -> Range:
    return Range(start, count)


def _seen() -> Seen:
    return Seen(hidden=(_pages(BASE, 100),), anonymous=(_pages(BASE, 200),), of_files=(_pages(FILE, 10),))


def test_present_pages_that_criu_did_not_list_are_listed(tmp_path: Path, images: int) -> None:
    _write(tmp_path, Entry(BASE + 150 * PAGE_BYTES, 10, PE_LAZY), Entry(FILE, 1, PE_PRESENT))
    present = (_pages(BASE + 5 * PAGE_BYTES, 3), _pages(BASE + 148 * PAGE_BYTES, 14), _pages(FILE, 1))
    last = {PID: Last((), present, ())}
    assert list_hidden(images, last, seen={PID: _seen()}) == (criu_unseen.lazy_name(INSIDE),)
    complete_images(images, last, seen={PID: _seen()})
    listed, unseen = criu_unseen.lazy_lists(images, INSIDE)
    assert listed == [(BASE + 150 * PAGE_BYTES, 10)]
    expected = [(5, 3), (148, 2), (160, 2)]
    assert unseen == [(BASE + first * PAGE_BYTES, count) for first, count in expected]
    with MemoryStore(limit_bytes=1 << 20) as store:
        assert store.missing(images) == {
            INSIDE: [(BASE + 5 * PAGE_BYTES, 3), (BASE + 148 * PAGE_BYTES, 14)],
        }


def test_lists_of_a_freeze_that_was_given_up_say_nothing_any_more(tmp_path: Path, images: int) -> None:
    last = {PID: Last((), (_pages(BASE, 3),), ())}
    earlier = list_hidden(images, last, seen={PID: _seen()})
    assert list_hidden(images, last, seen={}, earlier=earlier) == earlier
    assert criu_unseen.read_list(images, earlier[0]) == []
    assert list_hidden(images, last, seen={PID: _seen()}, earlier=earlier) == earlier
    assert criu_unseen.read_list(images, earlier[0]) == [(BASE, 3)]


def test_what_came_after_a_list_was_looked_at_is_not_missing(tmp_path: Path, images: int) -> None:
    _write(tmp_path)
    name = criu_unseen.lazy_name(INSIDE)
    (tmp_path / name).write_bytes(criu_unseen.encode_lazy([(BASE, 2), (BASE + 5 * PAGE_BYTES, 1)]))
    with MemoryStore(limit_bytes=1 << 20) as store:
        store.expect(images, ("pstree.img", name))
        arriving = store.begin(INSIDE, [(BASE + PAGE_BYTES, 1)])
        arriving.feed(bytes(PAGE_BYTES))
        arriving.finish()
        assert store.missing(images) == {INSIDE: [(BASE, 1), (BASE + 5 * PAGE_BYTES, 1)]}


def test_changed_page_of_a_file_that_criu_left_out(tmp_path: Path, images: int) -> None:
    _write(tmp_path, Entry(FILE, 1, PE_PRESENT))
    with pytest.raises(MigrationFailed, match="left out 2 changed pages"):
        complete_images(images, {PID: Last((), (_pages(FILE, 3),), ())}, seen={PID: _seen()})


def test_process_of_which_nothing_is_known(tmp_path: Path, images: int) -> None:
    _write(tmp_path)
    with pytest.raises(MigrationFailed, match="not known"):
        complete_images(images, {}, seen={PID: _seen()})


def test_nothing_was_hidden(tmp_path: Path, images: int) -> None:
    complete_images(images, {PID: Last((), (_pages(BASE, 1),), (_pages(BASE, 1),))}, seen={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lie",
    [
        b"12345",
        criu_unseen.encode_lazy([(BASE + 1, 1)]),
        criu_unseen.encode_lazy([(BASE, 0)]),
        criu_unseen.encode_lazy([(BASE, 2), (BASE, 1)]),
        criu_unseen.encode_lazy([(BASE, 1 << 50)]),
        criu_unseen.encode_lazy([(1 << 60, 1)]),
    ],
)
def test_list_that_cannot_be(tmp_path: Path, images: int, lie: bytes) -> None:
    _write(tmp_path)
    (tmp_path / criu_unseen.lazy_name(INSIDE)).write_bytes(lie)
    with MemoryStore(limit_bytes=1 << 20) as store, pytest.raises(ProtocolError):
        store.missing(images)

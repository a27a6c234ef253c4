# SPDX-License-Identifier: Apache-2.0
"""Uids of tenants: reserved, given out once, never what somebody else holds."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from insula.daemon.uid_ranges import UidRanges, reserve
from insula.model.errors import Conflict, UidRangeExhausted, UidRangeTaken
from insula.runtime.store import Store
from insula.tenant.idmap import FIRST_UID, LAST_UID, RANGE_WIDTH, RESERVATION, is_reserved, parse_subordinates


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "db.sqlite")) as opened:
        yield opened


def files_in(folder: Path, text: str) -> tuple[Path, ...]:
    paths = (folder / "subuid", folder / "subgid")
    paths[0].write_text(text)
    return paths


def test_the_reservation_covers_every_tenant_and_is_made_once(tmp_path: Path) -> None:
    files = files_in(tmp_path, "alice:100000:65536")
    said: list[str] = []
    reserve(said.append, files=files)
    reserve(said.append, files=files)
    assert files[0].read_text() == f"alice:100000:65536\n{RESERVATION}\n"
    assert files[1].read_text() == f"{RESERVATION}\n"
    assert is_reserved(parse_subordinates(files[0].read_text()))
    assert len(said) == 4 and [each.name for each in sorted(tmp_path.iterdir())] == ["subgid", "subuid"]


def test_a_file_that_another_program_changes_is_left_alone(tmp_path: Path) -> None:
    files = files_in(tmp_path, "")
    (tmp_path / "subuid.lock").touch()
    with pytest.raises(Conflict, match="another program"):
        reserve(print, files=files)


def test_lines_that_are_none_are_passed_over() -> None:
    text = "# x:1:2\n\nbob:5\ncarol:a:b\ndave:7:8\nerin:-1:5\n"
    assert [(each.owner, each.first, each.count) for each in parse_subordinates(text)] == [("dave", 7, 8)]


def test_a_new_tenant_passes_over_what_others_hold(tmp_path: Path, store: Store) -> None:
    lines = (
        f"podman:{FIRST_UID + RANGE_WIDTH + 5}:1\nlxd:{FIRST_UID + 5 * RANGE_WIDTH}:{4091 * RANGE_WIDTH}\n"
    )
    ranges = UidRanges(store, files=files_in(tmp_path, lines))
    found = [ranges.base_of(name) for name in ("a", "b", "c", "d")]
    assert sorted(found) == [FIRST_UID + place * RANGE_WIDTH for place in (0, 2, 3, 4)]
    assert ranges.base_of("a") == found[0]
    for _ in range(2):
        with pytest.raises(UidRangeExhausted):
            ranges.base_of("e")
    with pytest.raises(UidRangeExhausted):
        ranges.base_of("f")


def test_first_uid_does_not_tell_how_many_came_before(tmp_path: Path) -> None:
    found = set()
    for number in range(4):
        with closing(Store(tmp_path / f"{number}.sqlite")) as store:
            found.add(UidRanges(store, files=files_in(tmp_path, "")).base_of("a"))
    assert len(found) > 1, "four hosts gave their first tenant the same uids"


def test_range_of_a_removed_tenant_is_given_to_nobody_else(tmp_path: Path, store: Store) -> None:
    lines = f"lxd:{FIRST_UID + RANGE_WIDTH}:{4095 * RANGE_WIDTH}\n"
    ranges = UidRanges(store, files=files_in(tmp_path, lines))
    base = ranges.base_of("a")
    store.remove_tenant("a")
    with pytest.raises(UidRangeExhausted):
        ranges.base_of("b")
    assert ranges.base_of("a") == base


def test_a_tenant_whose_uids_were_given_away_is_refused_and_keeps_its_place(
    tmp_path: Path, store: Store
) -> None:
    files = files_in(tmp_path, "")
    ranges = UidRanges(store, files=files)
    base = ranges.base_of("a")
    files[1].write_text(f"podman:{LAST_UID - (1 << 28) + 1}:{1 << 28}\n")
    with pytest.raises(UidRangeTaken, match="podman"):
        ranges.base_of("a")
    files[1].unlink()
    assert ranges.base_of("a") == base


@pytest.mark.parametrize(("text", "is_told"), [("subid: sss\n", True), ("subid: files\n", False)])
def test_that_a_service_lends_uids_unseen_is_said_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, is_told: bool
) -> None:
    nsswitch = tmp_path / "nsswitch.conf"
    nsswitch.write_text(text)
    UidRanges(store, files=files_in(tmp_path, RESERVATION), nsswitch=nsswitch).tell_state()
    assert ("uids are lent that insulad does not know of" in caplog.messages) is is_told

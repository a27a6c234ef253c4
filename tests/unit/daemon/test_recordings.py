# SPDX-License-Identifier: Apache-2.0
"""What becomes of a recording whose container moves, starts, or has a name that no profile can have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from hosted import wait_until
from insula.daemon.profile_files import ProfileFiles
from insula.daemon.profiles import ProfileDesk
from insula.daemon.recordings import Recordings
from insula.model.errors import ContainerNotFound, DiskFull, WrongState
from insula.model.grant import Action, Grant, Principal, Role
from insula.model.lifecycle import Status
from insula.model.quota import Unlimited
from insula.model.record import ContainerRecord
from insula.tenant.redaction import Redaction
from records import container_record

ROOT = Grant(principal=Principal(name="root", role=Role.ADMIN, uid=0), action=Action.CONTROL, tenant="alice")
LONG = "a" * 63


class Collecting:
    """The collector, of containers that do nothing."""

    tells_capabilities = True

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def subscribe(self, *_: object, **__: object) -> Iterator[Any]:
        self.held += 1
        try:
            yield SimpleNamespace(read=lambda at_most: [])
        finally:
            self.held -= 1

    def counting(self, *_: object) -> Any:
        return nullcontext()

    def counts(self, *_: object) -> list[Any]:
        return []

    def catch_up(self) -> None: ...


class Around:
    """The parts of the daemon around recordings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "recordings"
        self.record = container_record()
        self.collector: Any = Collecting()
        self.at_lock: list[Status] = []
        """What the container has become when its lock is had."""
        group: Any = SimpleNamespace(create=lambda: None, pids=list)
        store = SimpleNamespace(get_container=self._get)
        self.runtime: Any = SimpleNamespace(
            store=store,
            find=lambda *_: self.record,
            group=lambda _: group,
            locked=self._locked,
            folders=SimpleNamespace(state=folder),
        )
        self.watching: Any = SimpleNamespace(
            subject=lambda each: SimpleNamespace(name=each.name, group=group)
        )
        sight: Any = SimpleNamespace(of_reader=lambda *_: Redaction())
        files = ProfileFiles(folder / "profiles", Unlimited())
        self.desk = ProfileDesk(self.runtime, self.collector, self.watching, sight=sight, files=files)

    def _get(self, container_id: str) -> ContainerRecord:
        if container_id != self.record.id:
            raise ContainerNotFound(container_id)
        return self.record

    @contextmanager
    def _locked(self, _container_id: str) -> Iterator[None]:
        while self.at_lock:
            self.record = replace(self.record, status=self.at_lock.pop())
        yield

    def recordings(self, **parts: Any) -> Recordings:
        """Return those of another insulad."""
        return Recordings(self.runtime, self.collector, self.watching, folder=self.folder, **parts)

    def move(self, recordings: Recordings) -> None:
        """Have the container move away, and wait until its recording is over."""
        moved = replace(self.record, status=Status.MOVED, owner="beta")
        recordings.note(moved.id, moved)
        wait_until(lambda: not self.collector.held, what="nothing is watched")
        wait_until(lambda: not list(self.folder.iterdir()), what="its file is gone")


def refuse_to_begin(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


@pytest.mark.parametrize(("name", "others", "kept"), [
    ("Web", 0, "web"),
    ("Web", 1, "web-2"),
    (LONG, 1, "a" * 61 + "-2"),
    (LONG, 10, "a" * 60 + "-11"),
])  # fmt: skip
def test_what_was_seen_of_a_container_that_moves_is_kept_whatever_its_name(
    around: Around, name: str, others: int, kept: str
) -> None:
    around.record = container_record(name=name)
    for _ in range(others + 1):
        around.desk.record(ROOT, name)
        around.move(around.desk.recordings)
    profile = around.desk.get(ROOT, kept)
    assert (profile.container, profile.incomplete_because) == (name, "it moved to host beta")
    assert len(around.desk.list(ROOT)) == others + 1


def test_a_recording_under_a_name_that_no_profile_has_survives_a_kill(
    around: Around, caplog: pytest.LogCaptureFixture
) -> None:
    around.record = container_record(name="Web")
    around.desk.record(ROOT, "Web")
    around.desk.recordings.before_start(around.record)
    after = around.recordings(keep=None)
    assert caplog.messages == []
    assert "insulad was killed" in after.profile(around.record, name="x").incomplete_because


def test_what_is_recorded_has_a_name_under_which_it_can_be_kept(around: Around) -> None:
    around.record = container_record(name="Web")
    around.desk.record(ROOT, "Web")
    assert around.desk.recorded(ROOT, "Web").name == "web"


def test_nothing_is_left_of_a_recording_that_could_not_be_kept(
    around: Around, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(*_: object) -> str:
        raise DiskFull("cannot keep it")

    recordings = around.recordings(keep=keep)
    recordings.begin(around.record)
    around.move(recordings)
    assert caplog.messages == ["a recording is lost"]


def test_what_was_seen_is_kept_also_where_there_may_be_no_more_threads(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    around.desk.record(ROOT, "web")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_to_begin)
        around.move(around.desk.recordings)
    assert around.desk.get(ROOT, "web").incomplete_because == "it moved to host beta"


def test_a_life_that_begins_while_somebody_asks_is_recorded(around: Around) -> None:
    around.record = container_record(status=Status.CREATED)
    around.at_lock = [Status.RUNNING]  # its start was under way
    around.desk.record(ROOT, "web")
    assert not around.desk.recorded(ROOT, "web").is_from_birth


def test_who_has_moved_meanwhile_is_not_recorded(around: Around) -> None:
    around.at_lock = [Status.MOVED]
    with pytest.raises(WrongState, match="owns it"):
        around.desk.record(ROOT, "web")

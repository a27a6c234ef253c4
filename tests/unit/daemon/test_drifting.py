# SPDX-License-Identifier: Apache-2.0
"""What becomes of what a profile lacks: told to rules, announced, counted, and what was lost is said."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from insula.daemon.drifting import DriftDesk
from insula.model.change import Change
from insula.model.grant import Action, Grant, Principal, Role
from insula.model.lifecycle import Status
from insula.model.monitor import Event, EventKind, Lost
from insula.model.record import ContainerRecord
from insula.model.spec import AppliedProfile
from insula.monitor.drift import MAX_ANNOUNCED, MAX_DRIFTS
from insula.tenant.redaction import Redaction
from records import container_record

RECORD = container_record(
    status=Status.RUNNING, profile=AppliedProfile(name="p", calls=(), capabilities=None, written=("/tmp",))
)
ROOT = Grant(principal=Principal(name="root", role=Role.ADMIN, uid=0), action=Action.READ, tenant="root")


class Heard:
    """What is told, to whom: the parts of the daemon around a desk."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.announced: list[Change] = []
        self.records: list[ContainerRecord] = []
        store = SimpleNamespace(list_containers=lambda *_: self.records)
        runtime: Any = SimpleNamespace(store=store, find=lambda *_: RECORD)
        self.counted: dict[str, int] = {}
        """System calls, as the kernel counts them."""
        collector: Any = SimpleNamespace(
            tell=lambda _, event: self.told.append(event),
            strange=lambda _: self.counted,
            knowing=lambda *_: nullcontext(),
        )
        watching: Any = SimpleNamespace(subject=lambda _: None)
        sight: Any = SimpleNamespace(of_reader=lambda *_: Redaction())
        self.desk = DriftDesk(runtime, collector, watching, sight=sight, announce=self.announced.append)
        subject: Any = SimpleNamespace(cgroup=1)
        self.desk._knowing(RECORD, subject)

    def take(self, *lines: Event | Lost) -> None:
        self.desk._take(RECORD, lines)


def written(path: str) -> Event:
    return Event(
        at=1.0,
        container="c",
        name="web",
        kind=EventKind.FILE,
        call="openat",
        path=path,
        detail="O_WRONLY|O_CREAT",
    )


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_rules_are_told_of_all_that_is_new_and_events_of_some(heard: Heard) -> None:
    heard.take(*(written(f"/new/{number}/x") for number in range(2 * MAX_DRIFTS)), written("/etc/evil"))
    assert len(heard.announced) == MAX_ANNOUNCED
    assert len(heard.told) == 2 * MAX_DRIFTS + 1
    assert heard.told[-1].path == "/etc/evil"


def test_what_was_lost_is_counted_and_said(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    heard.take(Lost(events=3), written("/new/x"), Lost(events=4))
    found = heard.desk.drifts(ROOT, "web")
    assert (found.lost_events, [each.thing for each in found.drifts]) == (7, ["/new"])
    assert caplog.messages == ["drift was not looked for in lost events"] * 2


def test_a_call_whose_first_event_was_lost_is_told_and_announced_once(heard: Heard) -> None:
    heard.counted = {"ptrace": 3}
    heard.take(Lost(events=1))
    assert [each.call for each in heard.told] == ["ptrace"]
    (change,) = heard.announced
    assert change.detail == "p: ptrace new system call, refused, 3 times"
    for _ in range(2):
        (found,) = heard.desk.drifts(ROOT, "web").drifts
        assert (found.part, found.thing, found.count) == ("calls", "ptrace", 3)
    assert len(heard.announced) == len(heard.told) == 1


def test_a_call_whose_event_is_on_its_way_is_left_to_it(heard: Heard) -> None:
    heard.counted = {"ptrace": 1}
    assert heard.desk.drifts(ROOT, "web").drifts == ()
    assert heard.announced == []


def test_what_found_no_room_is_counted(heard: Heard) -> None:
    heard.take(*(written(f"/new/{number}/x") for number in range(MAX_DRIFTS + 3)))
    found = heard.desk.drifts(ROOT, "web")
    assert (len(found.drifts), found.not_remembered) == (MAX_DRIFTS, 3)


def test_of_what_runs_no_more_nothing_is_counted(heard: Heard) -> None:
    heard.take(written("/new/x"))
    heard.records = [RECORD]
    assert [each.done for each in heard.desk.counts(ROOT)] == [{"written": 1}]
    heard.records = [replace(RECORD, status=Status.EXITED)]
    assert heard.desk.counts(ROOT) == []

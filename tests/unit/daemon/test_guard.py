# SPDX-License-Identifier: Apache-2.0
"""What rules remember is bounded, and so is what follows an alarm."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from msgspec.structs import replace

from insula.daemon.guard import MAX_ADDRESSES, Guard
from insula.daemon.rights import PolicyFile
from insula.daemon.sight import Sight
from insula.model.change import Change
from insula.model.monitor import Event, EventKind
from records import container_record

RECORD = container_record()
NEW = '[[rule]]\nname = "new"\ncalls = ["sendto"]\nis_new = true\nquiet_s = 0\n'


class Guarded:
    """Rules, and what was told of their alarms."""

    def __init__(self, folder: Path, rules: str, **runtime: Any) -> None:
        (folder / "r.toml").write_text(rules)
        store = SimpleNamespace(list_containers=lambda *_: [])
        sight = Sight(PolicyFile(folder / "policy.toml"))
        around: Any = SimpleNamespace(store=store, **runtime)
        self.alarms: list[Change] = []
        nobody: Any = None
        self.guard = Guard(around, nobody, nobody, sight=sight, folder=folder, announce=self.alarms.append)

    def see(self, *events: Event) -> None:
        self.guard._judge(RECORD, events)


Guards: TypeAlias = Callable[..., Guarded]


@pytest.fixture
def guarded(tmp_path: Path) -> Any:
    made: list[Guarded] = []

    def make(rules: str, **runtime: Any) -> Guarded:
        made.append(Guarded(tmp_path, rules, **runtime))
        return made[-1]

    yield make
    for each in made:
        each.guard.close()


def sent(number: int) -> Event:
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9"
    return Event(at=1.0, container="c", name="web", kind=EventKind.NETWORK, call="sendto", address=address)


def test_addresses_are_remembered_up_to_a_bound_and_more_are_said_and_new(
    guarded: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    seen = guarded(NEW)
    seen.see(*(sent(number) for number in range(MAX_ADDRESSES)), sent(0))
    assert len(seen.alarms) == MAX_ADDRESSES
    caplog.clear()
    seen.see(*(sent(MAX_ADDRESSES) for _ in range(20)), sent(0))
    assert len(seen.alarms) == MAX_ADDRESSES + 20
    said = [each for each in caplog.messages if each.startswith("too many addresses")]
    assert len(said) == 2  # at the first, and at the 10th
    assert len(seen.guard._memories[RECORD.id].addresses) == MAX_ADDRESSES


def test_what_nobody_answered_is_still_new(guarded: Guards) -> None:
    seen = guarded(NEW.replace("quiet_s", 'errors = ["none", "EINPROGRESS"]\nquiet_s'))
    seen.see(replace(sent(0), error="ECONNREFUSED"), sent(0), sent(0))
    seen.see(replace(sent(1), error="EINPROGRESS"), sent(1))
    assert len(seen.alarms) == 2


def test_nothing_is_remembered_for_rules_that_do_not_ask(guarded: Guards) -> None:
    seen = guarded(NEW.replace("is_new = true", ""))
    seen.see(sent(0), sent(0))
    assert len(seen.alarms) == 2
    assert not seen.guard._memories[RECORD.id].addresses

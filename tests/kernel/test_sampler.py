# SPDX-License-Identifier: Apache-2.0
"""The sampler on real control groups: what it sees, what it forgets, and how little it asks of the kernel."""

import math
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from insula.daemon import sampler as module
from insula.daemon.sampler import Sampler
from insula.kernel.cgroup import Group, Hierarchies, delete_parent
from insula.model.lifecycle import Status
from insula.monitor.history import History
from waiting import DEADLINE_S

READS = 7
"""Of a container that rests: processor, memory, processes, three of pressure; and one to spare for what is asked for all."""
MANY = 20


@dataclass
class Containers:
    """Groups with a process each, as the sampler's runtime."""

    parent: str
    groups: dict[str, Group] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def store(self) -> "Containers":
        return self

    def list_containers(self, _tenant: str | None = None) -> list[Any]:
        return self.records

    def group(self, record: Any) -> Group:
        return self.groups[record.id]

    def start(self, *command: str) -> Any:
        process = subprocess.Popen(command)
        self.processes.append(process)
        name = f"{len(self.processes):064x}"
        self.groups[name] = group = Group(Hierarchies.detect(), self.parent, name)
        group.create()
        group.attach(process.pid)
        record = SimpleNamespace(id=name, name=name, pid=process.pid, status=Status.RUNNING, attachment=None)
        self.records.append(record)
        return record

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for group in self.groups.values():
            group.delete(time.monotonic() + DEADLINE_S)
        delete_parent(Hierarchies.detect(), self.parent)


@pytest.fixture
def containers() -> Iterator[Containers]:
    made = Containers(f"insula-test-{uuid.uuid4().hex[:8]}")
    yield made
    made.close()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.sqlite")


@pytest.fixture
def make(
    containers: Containers, history: History, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Sampler]]:
    """Make a sampler that looks only when it is told to."""
    monkeypatch.setattr(module, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(module, "SHORTEST_S", 0.0)
    made: list[Sampler] = []

    def build() -> Sampler:
        parts: Any = (containers, SimpleNamespace(is_counting=False), None)
        made.append(Sampler(*parts, history=history))
        return made[-1]

    yield build
    for each in made:
        each.close()


def used(history: History, record: Any) -> Any:
    found = history.usage({record.id: ""}, since=0, step_s=math.inf)
    return found[0] if found else None


def test_what_ran_before_is_told_from_the_second_look_on(
    containers: Containers, history: History, make: Callable[[], Sampler]
) -> None:
    busy = containers.start("sh", "-c", "while :; do :; done")
    sampler = make()
    sampler._sample()
    assert used(history, busy) is None
    before = containers.groups[busy.id].glance().cpu_usage_us
    while containers.groups[busy.id].glance().cpu_usage_us < before + 50_000:
        pass
    sampler._sample()
    found = used(history, busy)
    assert found.cpu_us >= 50_000 and found.pids_peak == 1


def test_what_starts_now_is_told_from_its_beginning(
    containers: Containers, history: History, make: Callable[[], Sampler]
) -> None:
    sampler = make()
    busy = containers.start("sh", "-c", "while :; do :; done")
    sampler.note(busy.id, busy)
    while containers.groups[busy.id].glance().cpu_usage_us < 50_000:
        pass
    sampler._sample()
    assert used(history, busy).cpu_us >= 50_000


def test_what_has_ended_is_looked_at_no_more_and_what_is_removed_is_forgotten(
    containers: Containers, history: History, make: Callable[[], Sampler]
) -> None:
    quiet = containers.start("sleep", "600")
    sampler = make()
    for _ in range(2):
        sampler._sample()
    kept = used(history, quiet).seconds
    sampler.note(quiet.id, SimpleNamespace(id=quiet.id, pid=0, status=Status.EXITED))  # type: ignore[arg-type]
    sampler._sample()
    assert used(history, quiet).seconds == kept
    sampler.note(quiet.id, None)
    sampler._sample()
    assert used(history, quiet) is None


def test_a_group_that_has_just_gone_spoils_nothing(
    containers: Containers, history: History, make: Callable[[], Sampler]
) -> None:
    gone, quiet = containers.start("sleep", "600"), containers.start("sleep", "600")
    sampler = make()
    sampler._sample()
    containers.processes[0].kill()
    containers.processes[0].wait()
    containers.groups[gone.id].delete(time.monotonic() + DEADLINE_S)
    sampler._sample()
    assert used(history, gone) is None
    assert used(history, quiet) is not None


def test_containers_at_rest_cost_a_few_reads(
    containers: Containers, history: History, make: Callable[[], Sampler]
) -> None:
    for _ in range(MANY):
        containers.start("sleep", "600")
    sampler = make()
    sampler._sample()
    sampler._sample()
    before = _reads()
    sampler._sample()
    assert _reads() - before <= READS * MANY


def _reads() -> int:
    """Return how many times this thread has read from a file."""
    text = Path("/proc/thread-self/io").read_text()
    return int(text.split("syscr:")[1].split()[0])

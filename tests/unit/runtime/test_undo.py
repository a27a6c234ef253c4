# SPDX-License-Identifier: Apache-2.0
"""Undoing after a failure: the first error is the one that is told, and every step is tried."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from insula.migrate import settle
from insula.model.errors import CheckpointFailed, StartFailed
from insula.model.lifecycle import Status
from insula.model.record import Attachment, ContainerRecord
from insula.runtime import dump
from insula.runtime.store import Store
from insula.runtime.undo import attempt
from records import container_record

NOWHERE = Attachment(
    network="n", network_name="default", address="10.0.0.2", prefix_length=24, gateway="10.0.0.1",
    mac="02:00:00:00:00:02", bridge="in-nobridge", interface="iv-nothing",
)  # fmt: skip


def record(status: Status) -> ContainerRecord:
    return container_record(status=status, attachment=NOWHERE)


def test_the_first_error_is_told_though_undoing_fails(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    with pytest.raises(CheckpointFailed, match="why"), ExitStack() as undo:
        undo.callback(attempt, done.append, "last")
        undo.callback(attempt, dump.release_network, record(Status.RUNNING))
        raise CheckpointFailed("why")
    assert done == ["last"]
    assert "cannot undo" in caplog.text


def test_a_source_runs_on_though_its_interface_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, thawed = Store(tmp_path / "db.sqlite"), []
    store.add_container(record(Status.MIGRATING))

    def thaw() -> None:
        thawed.append(True)

    group = SimpleNamespace(exists=lambda: True, thaw=thaw)
    runtime = SimpleNamespace(store=store, group=lambda _: group)
    settle.thaw(runtime, "a" * 64)  # type: ignore[arg-type]
    assert thawed == [True]
    assert store.get_container("a" * 64).status is Status.RUNNING
    assert "release_network" in caplog.records[0].fields["step"]  # type: ignore[attr-defined]
    store.close()


def test_a_failed_undo_of_ours_is_no_news_either(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> None:
        raise StartFailed("the spawner knows no such container")

    attempt(gone)
    assert len(caplog.records) == 1

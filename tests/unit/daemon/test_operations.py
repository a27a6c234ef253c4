# SPDX-License-Identifier: Apache-2.0
"""Operations: run, follow, cancel, fail, and what a crash leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from insula.api.verbs import Reporter, Result
from insula.daemon.operations import OperationRegistry
from insula.daemon.recover import recover_operations
from insula.model.errors import MigrationFailed, OperationNotFound, WrongState
from insula.model.record import OperationRecord, OperationStatus
from insula.runtime.store import Store


@asynccontextmanager
async def registry(tmp_path: Path) -> AsyncIterator[OperationRegistry]:
    store = Store(tmp_path / "db.sqlite")
    yield OperationRegistry(store, asyncio.get_running_loop())
    store.close()


def run(test: Callable[[OperationRegistry], Any], tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(10), registry(tmp_path) as operations:
            await test(operations)

    asyncio.run(main())


def begin(operations: OperationRegistry, work: Callable[[Reporter], Result]) -> OperationRecord:
    return operations.start(work, kind="migrate", tenant="alice", subject="web", may_cancel=True)


async def end_of(operations: OperationRegistry, record: OperationRecord) -> OperationRecord:
    return [each async for each in operations.follow(None, record.id)][-1]


def test_a_follower_sees_progress_and_the_end(tmp_path: Path) -> None:
    async def test(operations: OperationRegistry) -> None:
        step = threading.Event()

        def work(reporter: Reporter) -> Result:
            reporter.phase("precopy")
            reporter.progress(1, 2)
            step.wait()
            return {"target": "beta"}

        record = begin(operations, work)
        seen = []
        async for each in operations.follow("alice", record.id):
            seen.append(each)
            if each.progress.done == 1:
                step.set()
        assert (seen[-1].status, seen[-1].result, seen[-1].may_cancel) == ("done", {"target": "beta"}, False)
        assert any((each.progress.phase, each.progress.done) == ("precopy", 1) for each in seen)
        assert await end_of(operations, record) == seen[-1]
        with pytest.raises(OperationNotFound):
            operations.get("bob", record.id)

    run(test, tmp_path)


def test_a_failure_keeps_code_and_cure(tmp_path: Path) -> None:
    async def test(operations: OperationRegistry) -> None:
        def fail(_: Reporter) -> Result:
            raise MigrationFailed("cannot migrate", hint="wait")

        def crash(_: Reporter) -> Result:
            raise ZeroDivisionError

        error = (await end_of(operations, begin(operations, fail))).error
        assert error and (error.code, error.hint) == ("migration_failed", "wait")
        error = (await end_of(operations, begin(operations, crash))).error
        assert error and error.code == "internal"

    run(test, tmp_path)


def test_cancel_stops_it_before_the_point_of_no_return_only(tmp_path: Path) -> None:
    async def test(operations: OperationRegistry) -> None:
        ready, go = threading.Event(), threading.Event()

        def work(reporter: Reporter) -> Result:
            ready.set()
            go.wait()
            reporter.check()
            return {}

        def late(reporter: Reporter) -> Result:
            go.clear()
            reporter.forbid_cancel()
            ready.set()
            go.wait()
            reporter.check()
            return {}

        record = begin(operations, work)
        await asyncio.to_thread(ready.wait)
        operations.cancel("alice", record.id)
        go.set()
        assert (await end_of(operations, record)).status is OperationStatus.CANCELLED
        ready.clear()
        record = begin(operations, late)
        await asyncio.to_thread(ready.wait)
        with pytest.raises(WrongState, match="no way back"):
            operations.cancel("alice", record.id)
        go.set()
        assert (await end_of(operations, record)).status is OperationStatus.DONE
        with pytest.raises(WrongState, match="done"):
            operations.cancel("alice", record.id)

    run(test, tmp_path)


def test_operations_of_a_dead_daemon_are_failed_unless_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path / "db.sqlite")
    for name in ("a", "b"):
        store.save_operation(
            OperationRecord(id=name, kind="migrate", tenant="t", subject="s", status=OperationStatus.RUNNING)
        )
    assert recover_operations(store, resumed=frozenset({"b"})) == 1
    error = store.get_operation("a").error
    assert error and error.code == "interrupted"
    assert store.get_operation("b").status is OperationStatus.RUNNING
    store.close()

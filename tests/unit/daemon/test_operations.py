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
from insula.daemon.operations import AT_ONCE, AT_ONCE_OF, OperationRegistry
from insula.daemon.recover import recover_operations
from insula.daemon.tenant_use import BUILD
from insula.model.errors import MigrationFailed, OperationNotFound, QuotaExceeded, WrongState
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


def begin(
    operations: OperationRegistry,
    work: Callable[[Reporter], Result],
    *,
    tenant: str = "alice",
    asker: str = "",
    kind: str = "migrate",
) -> OperationRecord:
    return operations.start(
        work, kind=kind, tenant=tenant, asker=asker or tenant, subject="web", may_cancel=True
    )


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


def test_ended_operations_of_a_tenant_displace_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("insula.daemon.operations.KEPT", 3)

    async def test(operations: OperationRegistry) -> None:
        bobs = await end_of(operations, begin(operations, lambda _: {}, tenant="bob"))
        for _ in range(5):
            last = await end_of(operations, begin(operations, lambda _: {}))
        assert operations.list("bob") == [bobs]
        assert len(operations.list("alice")) == 3
        assert operations.list("alice")[-1] == last

    run(test, tmp_path)


@pytest.mark.parametrize(("kind", "most"), [("restore", AT_ONCE), (BUILD, AT_ONCE_OF[BUILD])])
def test_operations_at_once_are_bounded_for_each_who_asks(tmp_path: Path, kind: str, most: int) -> None:
    async def test(operations: OperationRegistry) -> None:
        go = threading.Event()

        def work(_: Reporter) -> Result:
            go.wait()
            return {}

        try:
            under_way = [begin(operations, work, kind=kind) for _ in range(most)]
            with pytest.raises(QuotaExceeded, match=f"{most} of {most} are under way"):
                begin(operations, work, kind=kind)
            others = [
                begin(operations, work, kind=kind, tenant="bob"),
                begin(operations, work, kind=kind, tenant="alice", asker="root"),
            ]
        finally:
            go.set()
        for each in (*under_way, *others):
            await end_of(operations, each)
        assert len(operations.list("alice")) == most + 1
        await end_of(operations, begin(operations, work, kind=kind))

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


def test_one_for_which_there_is_no_thread_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test(operations: OperationRegistry) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            refused = [begin(operations, lambda _: {}) for _ in range(AT_ONCE + 1)]
        assert {each.status for each in refused} == {"failed"}
        record = await end_of(operations, begin(operations, lambda _: {}))
        assert record.status == "done"

    run(test, tmp_path)

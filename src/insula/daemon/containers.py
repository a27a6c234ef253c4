# SPDX-License-Identifier: Apache-2.0
"""The API's verbs for containers, tied to `runtime/` and `migrate/`: one line of call each."""

from dataclasses import dataclass
from typing import BinaryIO

from insula.api.bodies import PathStat
from insula.api.verbs import AttachRequest, LogCursor, LogWish, Reporter, Result
from insula.boot.protocol import AttachPlan
from insula.migrate.settle import resolve
from insula.migrate.source import migrate
from insula.migrate.target import receive
from insula.migrate.wire import Peers, Socket
from insula.model.grant import Grant
from insula.model.record import CheckpointRecord, ContainerRecord, ContainerStats, ProcessRecord
from insula.model.spec import (
    CheckpointWish,
    ExecSpec,
    MigrateWish,
    ResizeWish,
    ResolveWish,
    RestoreWish,
    Spec,
    StopWish,
)
from insula.runtime.archive import read_archive, stat_path, write_archive
from insula.runtime.checkpoint import checkpoint, delete_checkpoint
from insula.runtime.context import Runtime
from insula.runtime.create import create
from insula.runtime.delete import delete, rename
from insula.runtime.diff import Difference, diff
from insula.runtime.execute import attach, execute, resize
from insula.runtime.logs import open_logs
from insula.runtime.pause import pause, unpause
from insula.runtime.restore import restore
from insula.runtime.start import start
from insula.runtime.stats import all_stats, stats
from insula.runtime.stop import Stopping, begin_stop, force_stop, kill
from insula.runtime.top import Told, top


@dataclass(kw_only=True)
class Containers:
    """What can be done to containers."""

    runtime: Runtime
    peers: Peers

    def create(self, grant: Grant, spec: Spec) -> ContainerRecord:
        return create(grant, self.runtime, spec)

    def start(self, grant: Grant, ref: str, *, attach: AttachRequest | None = None) -> None:
        if attach is None:
            start(grant, self.runtime, ref)
            return
        spec = self.runtime.find(grant, ref).spec
        plan = AttachPlan(preamble=attach.preamble.decode("latin-1"), stdin=attach.stdin and spec.stdin_open)
        record = start(grant, self.runtime, ref, attach=plan, connection=attach.fd)
        if spec.tty and attach.rows and attach.columns:
            self.runtime.spawner.resize(record.id, attach.rows, columns=attach.columns)

    def attach(self, grant: Grant, ref: str, *, attach: AttachRequest) -> None:
        _attach(grant, self.runtime, ref, request=attach)

    def execute(self, grant: Grant, ref: str, *, spec: ExecSpec, attach: AttachRequest | None) -> str:
        if attach is None:
            return execute(grant, self.runtime, ref, spec=spec)
        preamble = attach.preamble.decode("latin-1")
        return execute(grant, self.runtime, ref, spec=spec, preamble=preamble, connection=attach.fd)

    def begin_stop(self, grant: Grant, ref: str, *, wish: StopWish) -> Stopping | None:
        return begin_stop(grant, self.runtime, ref, signal=wish.signal, timeout_s=wish.timeout_s)

    def force_stop(self, grant: Grant, stopping: Stopping) -> None:
        force_stop(grant, self.runtime, stopping)

    def kill(self, grant: Grant, ref: str, *, signal: str) -> None:
        kill(grant, self.runtime, ref, signal=signal)

    def pause(self, grant: Grant, ref: str) -> None:
        pause(grant, self.runtime, ref)

    def unpause(self, grant: Grant, ref: str) -> None:
        unpause(grant, self.runtime, ref)

    def rename(self, grant: Grant, ref: str, *, name: str) -> None:
        rename(grant, self.runtime, ref, name=name)

    def resize(self, grant: Grant, ref: str, *, wish: ResizeWish) -> None:
        resize(grant, self.runtime, ref, rows=wish.rows, columns=wish.columns)

    def delete(self, grant: Grant, ref: str, *, force: bool, volumes: bool) -> None:
        delete(grant, self.runtime, ref, force=force, volumes=volumes)

    def stats(self, grant: Grant, ref: str) -> ContainerStats:
        return stats(grant, self.runtime, ref)

    def all_stats(self, grant: Grant) -> list[ContainerStats]:
        return all_stats(grant, self.runtime)

    def top(self, grant: Grant, ref: str, *, told: Told) -> list[ProcessRecord]:
        return top(grant, self.runtime, ref, told=told)

    def diff(self, grant: Grant, ref: str) -> Difference:
        return diff(grant, self.runtime, ref)

    def open_logs(self, grant: Grant, ref: str, *, wish: LogWish) -> LogCursor:
        return open_logs(
            grant,
            self.runtime,
            ref,
            tail=wish.tail,
            since=wish.since,
            until=wish.until,
            stdout=wish.stdout,
            stderr=wish.stderr,
            follow=wish.follow,
        )

    def stat_path(self, grant: Grant, ref: str, *, path: str) -> PathStat:
        return stat_path(grant, self.runtime, ref, path=path)

    def read_archive(self, grant: Grant, ref: str, *, path: str, output: BinaryIO) -> None:
        read_archive(grant, self.runtime, ref, path=path, output=output)

    def write_archive(self, grant: Grant, ref: str, *, path: str, source: BinaryIO) -> None:
        write_archive(grant, self.runtime, ref, path=path, source=source)

    def list_checkpoints(self, grant: Grant, ref: str) -> list[CheckpointRecord]:
        return self.runtime.store.list_checkpoints(self.runtime.find(grant, ref).id)

    def delete_checkpoint(self, grant: Grant, ref: str, *, name: str) -> None:
        delete_checkpoint(grant, self.runtime, ref, name=name)

    def checkpoint(self, grant: Grant, ref: str, *, wish: CheckpointWish, reporter: Reporter) -> Result:
        return checkpoint(grant, self.runtime, ref, wish=wish, reporter=reporter)

    def restore(self, grant: Grant, ref: str, *, wish: RestoreWish, reporter: Reporter) -> Result:
        return restore(grant, self.runtime, ref, wish=wish, reporter=reporter)

    def migrate(self, grant: Grant, ref: str, *, wish: MigrateWish, reporter: Reporter) -> Result:
        return migrate(grant, self.runtime, ref, wish=wish, peers=self.peers, reporter=reporter)

    def resolve(self, grant: Grant, ref: str, *, wish: ResolveWish) -> None:
        resolve(grant, self.runtime, ref, wish=wish)

    def receive_migration(self, grant: Grant, connection: Socket) -> None:
        receive(grant, self.runtime, connection=connection, peers=self.peers)


def _attach(grant: Grant, runtime: Runtime, ref: str, *, request: AttachRequest) -> None:
    preamble = request.preamble.decode("latin-1")
    attach(grant, runtime, ref, preamble=preamble, connection=request.fd, stdin=request.stdin)
    if request.rows and request.columns:
        resize(grant, runtime, ref, rows=request.rows, columns=request.columns)

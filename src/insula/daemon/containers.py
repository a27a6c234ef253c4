# SPDX-License-Identifier: Apache-2.0
"""The API's verbs for containers, tied to `runtime/` and `migrate/`: one line of call each."""

from typing import BinaryIO

from insula.api.bodies import PathStat
from insula.api.verbs import AttachRequest, LogCursor, LogWish, Reporter, Result
from insula.model.errors import Unsupported
from insula.model.grant import Grant
from insula.model.record import ChangedPath, CheckpointRecord, ContainerRecord, ContainerStats, ProcessRecord
from insula.model.spec import (
    CheckpointWish,
    ExecSpec,
    MigrateWish,
    ResizeWish,
    RestoreWish,
    Spec,
    StopWish,
)


def _pending(verb: str) -> Unsupported:
    return Unsupported(f"cannot {verb}: this insulad has no runtime")


class Containers:
    """What can be done to containers."""

    def create(self, grant: Grant, spec: Spec) -> ContainerRecord:
        raise _pending("create")

    def start(self, grant: Grant, ref: str, *, attach: AttachRequest | None = None) -> None:
        raise _pending("start")

    def attach(self, grant: Grant, ref: str, *, attach: AttachRequest) -> None:
        raise _pending("attach")

    def execute(self, grant: Grant, ref: str, *, spec: ExecSpec, attach: AttachRequest | None) -> str:
        raise _pending("execute")

    def stop(self, grant: Grant, ref: str, *, wish: StopWish) -> None:
        raise _pending("stop")

    def kill(self, grant: Grant, ref: str, *, signal: str) -> None:
        raise _pending("kill")

    def restart(self, grant: Grant, ref: str, *, wish: StopWish) -> None:
        raise _pending("restart")

    def pause(self, grant: Grant, ref: str) -> None:
        raise _pending("pause")

    def unpause(self, grant: Grant, ref: str) -> None:
        raise _pending("unpause")

    def rename(self, grant: Grant, ref: str, *, name: str) -> None:
        raise _pending("rename")

    def resize(self, grant: Grant, ref: str, *, wish: ResizeWish) -> None:
        raise _pending("resize")

    def delete(self, grant: Grant, ref: str, *, force: bool, volumes: bool) -> None:
        raise _pending("delete")

    def stats(self, grant: Grant, ref: str) -> ContainerStats:
        raise _pending("stats")

    def all_stats(self, grant: Grant) -> list[ContainerStats]:
        raise _pending("all stats")

    def top(self, grant: Grant, ref: str) -> list[ProcessRecord]:
        raise _pending("top")

    def diff(self, grant: Grant, ref: str) -> list[ChangedPath]:
        raise _pending("diff")

    def open_logs(self, grant: Grant, ref: str, *, wish: LogWish) -> LogCursor:
        raise _pending("open logs")

    def stat_path(self, grant: Grant, ref: str, *, path: str) -> PathStat:
        raise _pending("stat path")

    def read_archive(self, grant: Grant, ref: str, *, path: str, output: BinaryIO) -> None:
        raise _pending("read archive")

    def write_archive(self, grant: Grant, ref: str, *, path: str, source: BinaryIO) -> None:
        raise _pending("write archive")

    def list_checkpoints(self, grant: Grant, ref: str) -> list[CheckpointRecord]:
        raise _pending("list checkpoints")

    def delete_checkpoint(self, grant: Grant, ref: str, *, name: str) -> None:
        raise _pending("delete checkpoint")

    def checkpoint(self, grant: Grant, ref: str, *, wish: CheckpointWish, reporter: Reporter) -> Result:
        raise _pending("checkpoint")

    def restore(self, grant: Grant, ref: str, *, wish: RestoreWish, reporter: Reporter) -> Result:
        raise _pending("restore")

    def migrate(self, grant: Grant, ref: str, *, wish: MigrateWish, reporter: Reporter) -> Result:
        raise _pending("migrate")

    def receive_migration(self, grant: Grant, *, descriptor: int) -> None:
        raise _pending("receive migration")

# SPDX-License-Identifier: Apache-2.0
"""What the wish for a move means for one container: which tracker, and what its pause may cost."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from insula.migrate import track
from insula.migrate.lend import LaterTracker
from insula.migrate.precopy import Rules
from insula.model.errors import Unsupported
from insula.model.record import ContainerRecord
from insula.model.spec import DEFAULT_MAX_PAUSE_MS, MigrateWish, Mode
from insula.runtime.context import Runtime

STAND_SECONDS = 2.0
FIXED_SECONDS = 0.1
"""Of a pause without any memory: what CRIU needs on both sides (bench/migrate.py)."""
PROCESS_SECONDS = 0.006
"""Of a pause, for each process: CRIU stops, dumps and restores one after the other."""


def open_tracker(runtime: Runtime, record: ContainerRecord, *, mode: Mode) -> track.Tracker:
    """Choose how written memory is found.  Raises: Unsupported."""
    group = runtime.group(record)
    if mode is Mode.STOP_COPY:
        return track.WholeTracker(group.pids)
    tracker = track.open_tracker(group.pids, still=lambda: standing(runtime, record))
    if mode is Mode.POST_COPY:
        return LaterTracker(tracker)
    if mode is Mode.PRE_COPY and tracker.kind == "none":
        raise Unsupported(
            "cannot migrate with `--mode pre-copy`: this kernel cannot tell what a program writes",
            hint="Linux 6.7 or newer, or one with CONFIG_MEM_SOFT_DIRTY; see `insula doctor`",
        )
    return tracker


def rules_of(wish: MigrateWish, record: ContainerRecord, *, tracker: track.Tracker, processes: int) -> Rules:
    """Say what the pause may cost: what was wished for the move, or for the container, or as usual.

    Where nothing can travel before the freeze there is no usual: it takes as long as it takes.
    """
    wished = wish.max_pause_ms or record.spec.max_pause_ms
    usual = math.inf if tracker.kind == "none" else DEFAULT_MAX_PAUSE_MS
    fixed_s = FIXED_SECONDS + PROCESS_SECONDS * processes
    return Rules(max_pause_s=(wished or usual) / 1000, fixed_s=fixed_s, name=record.name)


@contextmanager
def standing(runtime: Runtime, record: ContainerRecord) -> Iterator[None]:
    """Have a container's processes stand for a moment.  Raises: TimeoutError."""
    group = runtime.group(record)
    group.freeze()
    try:
        group.wait_frozen(time.monotonic() + STAND_SECONDS)
        yield
    finally:
        group.thaw()

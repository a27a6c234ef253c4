# SPDX-License-Identifier: Apache-2.0
"""Named points of a migration at which a test can have this daemon fail.  Nothing happens unless INSULA_FAULT is set.

    INSULA_FAULT=POINT=kill          the daemon kills itself with SIGKILL
    INSULA_FAULT=POINT=fail          the step raises MigrationFailed
    INSULA_FAULT=POINT=wait:FIFO     the step opens the FIFO for reading and goes on at its end of file: the test's
                                     opening for writing returns when the point is reached, its closing lets it go on
    INSULA_FAULT=@FILE               the wish (POINT=…) is read from that file at each point, and each point that is passed
                                     is appended to FILE.passed: one insulad for many faults

Read once, at the start.  Out of scope: what the faults are good for (`tests/faults/`, `tests/system/test_migrate_faults.py`).
"""

import os
import signal
from enum import StrEnum

from insula.model.errors import MigrationFailed

VARIABLE = "INSULA_FAULT"


class Point(StrEnum):
    """In the order in which they are passed."""

    TARGET_RESERVED = "target.reserved"
    SOURCE_ACCEPTED = "source.accepted"
    TARGET_PAGES = "target.pages"
    SOURCE_ROUND = "source.round"
    TARGET_PREPARED = "target.prepared"
    SOURCE_FROZEN = "source.frozen"
    TARGET_LAST_PAGES = "target.last-pages"
    SOURCE_DUMPED = "source.dumped"
    TARGET_RESTORE = "target.restore"
    TARGET_HELD = "target.held"
    SOURCE_HELD = "source.held"
    SOURCE_COMMITTED = "source.committed"
    TARGET_COMMITTED = "target.committed"
    TARGET_RESTORED = "target.restored"
    TARGET_RESUMED = "target.resumed"
    SOURCE_RESUMED = "source.resumed"
    TARGET_PULL = "target.pull"
    """Pages that were pulled are about to be put in place."""
    SOURCE_PULL = "source.pull"
    """Pages that are asked for are about to be read."""


OF_PULLS = frozenset({Point.TARGET_PULL, Point.SOURCE_PULL})
"""Passed by post-copy only, from before the restore until all memory is there."""

_wish = os.environ.get(VARIABLE, "")


def fault(point: Point) -> None:
    """Fail here if that is wished.  Raises: MigrationFailed."""
    if not _wish:
        return
    wished, _, action = (_read_wish(point, _wish[1:]) if _wish.startswith("@") else _wish).partition("=")
    if point != wished:
        return
    match action.partition(":"):
        case ("kill", _, _):
            os.kill(os.getpid(), signal.SIGKILL)
        case ("wait", _, path):
            with open(path, "rb") as fifo:
                fifo.read()
        case _:
            raise MigrationFailed(f"cannot go on: fault `{point}` is wished for")


def _read_wish(point: Point, path: str) -> str:
    with open(f"{path}.passed", "a", encoding="ascii") as passed:
        passed.write(f"{point}\n")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""

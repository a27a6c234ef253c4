# SPDX-License-Identifier: Apache-2.0
"""Named points at which a test can have this daemon fail or wait.  Nothing happens unless INSULA_FAULT is set.

    INSULA_FAULT=POINT=kill          the daemon kills itself with SIGKILL
    INSULA_FAULT=POINT=fail          the step raises MigrationFailed
    INSULA_FAULT=POINT=wait:FIFO     the step opens the FIFO for reading and goes on at its end of file: the test's
                                     opening for writing returns when the point is reached, its closing lets it go on
    INSULA_FAULT=@FILE               the wish (POINT=…) is read from that file at each point, and each point that is passed
                                     is appended to FILE.passed: one insulad for many faults

Read once, at the start.  Out of scope: the points of a move (`migrate/fault.py`).
"""

import os
import signal
from enum import StrEnum

from insula.model.errors import MigrationFailed

VARIABLE = "INSULA_FAULT"


class Note(StrEnum):
    """The spawner has answered, and that something runs is about to be written down."""

    START = "start.note"
    RESTORE = "restore.note"


_wish = os.environ.get(VARIABLE, "")


def fault(point: StrEnum) -> None:
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


def _read_wish(point: StrEnum, path: str) -> str:
    with open(f"{path}.passed", "a", encoding="ascii") as passed:
        passed.write(f"{point}\n")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""

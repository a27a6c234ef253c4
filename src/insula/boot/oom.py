# SPDX-License-Identifier: Apache-2.0
"""Who goes first when the host's memory runs out: a container, never the parent of all, nor a CRIU that moves one.

Lowering a score needs CAP_SYS_RESOURCE; where it is missing the containers' is raised instead.  Source:
`Documentation/filesystems/proc.rst`, oom_score_adj.  Standard library only.
"""

import contextlib

SPAWNER_SCORE = -900
CONTAINER_SCORE = 300
"""Beside a spawner that could not be lowered."""

_OWN = "/proc/self/oom_score_adj"


def _set_score(value: int) -> None:
    with open(_OWN, "w", encoding="ascii") as file:
        file.write(str(value))


def go_last() -> None:
    """In the spawner: as good a score as we may have."""
    with contextlib.suppress(PermissionError):
        _set_score(SPAWNER_SCORE)


def go_first() -> None:
    """In a container's process: a worse score than the spawner's, whose copy we are.  What is born there inherits it."""
    with open(_OWN, encoding="ascii") as file:
        ours = int(file.read())
    _set_score(0 if ours < 0 else max(ours, CONTAINER_SCORE))

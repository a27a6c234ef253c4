# SPDX-License-Identifier: Apache-2.0
"""Named points of a migration at which a test can have this daemon fail; how is told in `runtime/fault.py`.

Out of scope: what the faults are good for (`tests/faults/`, `tests/system/test_migrate_faults.py`).
"""

from enum import StrEnum


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

# SPDX-License-Identifier: Apache-2.0
"""How tests wait: for a condition, with a deadline that only a failure waits for, so that a busy machine fails nothing.

INSULA_TESTS_DEADLINE_S: the deadline, where processors are emulated (tests/vm).
"""

import os
import select
import time
from collections.abc import Callable

DEADLINE_S = float(os.environ.get("INSULA_TESTS_DEADLINE_S", "60"))
_INTERVAL_S = 0.005


def wait_until(
    condition: Callable[[], bool], *, what: str | Callable[[], str], deadline_s: float = DEADLINE_S
) -> None:
    """Ask again and again until a condition holds.  Raises: AssertionError at the deadline, with what was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            words = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {deadline_s:.0f} s: {words}")
        select.select([], [], [], _INTERVAL_S)

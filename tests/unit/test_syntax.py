# SPDX-License-Identifier: Apache-2.0
"""Reading how insula is written does not depend on what other tests have left to be collected."""

import gc
import sys
import traceback
from pathlib import Path

import pytest

from syntax import tree_of


class _Left:
    """Garbage whose finalizer fails."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        raise OSError("left")


def test_a_finalizer_that_fails_does_not_end_the_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys,
        "unraisablehook",
        lambda it: traceback.format_exception(it.exc_type, it.exc_value, it.exc_traceback),
    )
    thresholds = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    try:
        for _ in range(20):
            _Left()
            tree_of.__wrapped__(Path(__file__))
    finally:
        gc.collect()
        gc.set_threshold(*thresholds)

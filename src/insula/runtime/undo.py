# SPDX-License-Identifier: Apache-2.0
"""Undo a step after a failure, so that people hear of that failure: what goes wrong while undoing is logged.

with ExitStack() as undo:
    undo.callback(attempt, release_network, record)
    …
    undo.pop_all()
"""

import logging
import threading
from collections.abc import Callable
from typing import ParamSpec

from insula.model.errors import InsulaError

LOG = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")


RETRY_S = 0.2
MAX_RETRY_S = 5.0


def until_done(closing: threading.Event, step: Callable[[], object], *, what: str) -> bool:
    """Do what must be done until it succeeds: a full disk or a spawner that has ended come back.

    Returns: False if insulad ends before; its next start does it then.
    """
    pause = RETRY_S
    while True:
        try:
            step()
            return True
        except (InsulaError, OSError) as error:
            LOG.error("to be tried again", extra={"fields": {"step": what, "reason": str(error)}})
        if closing.wait(pause):
            return False
        pause = min(2 * pause, MAX_RETRY_S)


def attempt(step: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    """Do an undoing step; its own failure is logged and hides no other."""
    try:
        step(*args, **kwargs)
    except (InsulaError, OSError) as error:
        LOG.error("cannot undo", extra={"fields": {"step": step.__name__, "reason": str(error)}})

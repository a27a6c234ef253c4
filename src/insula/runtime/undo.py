# SPDX-License-Identifier: Apache-2.0
"""Undo a step after a failure, so that people hear of that failure: what goes wrong while undoing is logged.

with ExitStack() as undo:
    undo.callback(attempt, release_network, record)
    …
    undo.pop_all()
"""

import logging
from collections.abc import Callable
from typing import ParamSpec

from insula.model.errors import InsulaError

LOG = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")


def attempt(step: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    """Do an undoing step; its own failure is logged and hides no other."""
    try:
        step(*args, **kwargs)
    except (InsulaError, OSError) as error:
        LOG.error("cannot undo", extra={"fields": {"step": step.__name__, "reason": str(error)}})

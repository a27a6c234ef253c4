# SPDX-License-Identifier: Apache-2.0
"""One act on each of several named things: go on after a failure, print what succeeded, fail at the end."""

from __future__ import annotations

from insula.cli.main import report
from insula.model.errors import DaemonUnreachable, InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def on_each(names: Iterable[str], act: Callable[[str], object], *, prints: bool = True) -> int:
    """Do `act` for each name; return the exit code.    prints: the name, when it is done."""
    code = 0
    for name in names:
        try:
            act(name)
        except DaemonUnreachable:
            raise
        except InsulaError as error:
            report(error)
            code = 1
        else:
            if prints:
                print(name, flush=True)
    return code

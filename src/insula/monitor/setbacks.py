# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses while containers are watched: who asked is told, with the cure; a thread of all goes on.

    somebody begins to watch ─► Unsupported, and nothing has begun
    a step of a thread, or an end ─► one line in the log until that step works again, and the next step

Out of scope: figures that somebody asks for, such as counts; an error there is the request's.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from insula.model.errors import Unsupported

LOG = logging.getLogger(__name__)

_TABLES_ARE_FULL = (
    "the kernel's tables of watched containers are full: end a trace, a count, a rule or an export"
)
_CURES = {
    errno.E2BIG: _TABLES_ARE_FULL,
    errno.ENOSPC: _TABLES_ARE_FULL,
    errno.EMFILE: "insulad has too many open files: raise its limit (`ulimit -n`) and restart it",
    errno.ENFILE: "the host has too many open files: raise fs.file-max",
    errno.ENOMEM: "the kernel has no memory left for it: end a trace or a container",
    errno.EAGAIN: "insulad may have no more threads: raise its limit of tasks (`ulimit -u`, pids.max)",
}
_ANY_CURE = "insula doctor says what eBPF needs here"


@contextmanager
def refusing() -> Iterator[None]:
    """Say of what the kernel refuses that it cannot be watched, why, and what helps.  Raises: Unsupported."""
    try:
        yield
    except OSError as error:
        raise Unsupported(
            f"cannot watch containers: {error.strerror or error}",
            hint=_CURES.get(error.errno or 0, _ANY_CURE),
            errno=errno.errorcode.get(error.errno or 0, ""),
        ) from error


class Setbacks:
    """Steps that failed last.  From any thread."""

    def __init__(self, whose: str) -> None:
        """whose: the thread whose steps they are, for the log."""
        self._whose = whose
        self._failing: set[str] = set()

    @contextmanager
    def going_on(self, step: str) -> Iterator[None]:
        """Go on after what the kernel refuses in the block: logged once until a step of this name works again."""
        try:
            yield
        except OSError as error:
            if step not in self._failing:
                self._failing.add(step)
                self._log(logging.ERROR, "a step of watching fails", step=step, reason=str(error))
        else:
            if step in self._failing:
                self._failing.discard(step)
                self._log(logging.INFO, "a step of watching works again", step=step)

    def _log(self, level: int, message: str, **fields: str) -> None:
        LOG.log(level, message, extra={"fields": {"of": self._whose, **fields}})

# SPDX-License-Identifier: Apache-2.0
"""Show a long operation: a live line on a terminal, one plain line for each phase in a pipe; to stderr.

ctrl-c asks for the operation's cancellation, if it may be cancelled, and goes on watching; a second one leaves it alone.
"""

from __future__ import annotations

import sys
from time import monotonic

from insula.cli.render import clip, printable, terminal_width
from insula.client import operations
from insula.model.errors import InsulaError
from insula.model.units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula.client.http import Client, Json

BAR_WIDTH = 20


class Display:
    """Draws records of one operation."""

    def __init__(self, title: str, *, is_live: bool) -> None:
        self._title = title
        self._is_live = is_live
        self._phase = ""
        self._message = ""
        self._started = monotonic()

    def update(self, record: Json) -> None:
        progress = record.get("progress") or {}
        phase, message = str(progress.get("phase", "")), str(progress.get("message", ""))
        if self._is_live:
            width, seconds = (terminal_width() or 80) - 1, int(monotonic() - self._started)
            words = self._titled(progress) + (f" ({seconds} s)" if seconds else "")
            sys.stderr.write("\r\x1b[K" + clip(printable(words), width))
        elif phase and (phase, message) != (self._phase, self._message):
            told = (self._title, "" if phase == self._title else phase, message)
            if any(told[1:]):
                sys.stderr.write(printable(": ".join(filter(None, told))) + "\n")
        if self._is_live and self._phase and phase != self._phase:
            self._finish_phase(progress)
        self._phase, self._message = phase or self._phase, message
        sys.stderr.flush()

    def _titled(self, progress: Json) -> str:
        """Return the line; an action that is one phase has its name in both."""
        words = describe(progress)
        return words if progress.get("phase") == self._title else f"{self._title}: {words}"

    # The line of a phase that is over stays on the screen.
    def _finish_phase(self, progress: Json) -> None:
        seconds = monotonic() - self._started
        width = (terminal_width() or 80) - 1
        sys.stderr.write(f"\r\x1b[K{self._title}: {self._phase} done ({seconds:.1f} s)\n")
        sys.stderr.write(clip(printable(self._titled(progress)), width))

    def close(self) -> None:
        if self._is_live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def describe(progress: Json) -> str:
    """Return phase, bar and amounts of a progress as one line."""
    words = [str(progress.get("phase", "")) or "starting"]
    done, total = int(progress.get("done", 0)), int(progress.get("total", 0))
    in_bytes = progress.get("unit", "bytes") == "bytes"
    unit = "" if in_bytes else f" {progress.get('unit')}"
    if total > 0:
        filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
        words.append("[" + "#" * filled + "-" * (BAR_WIDTH - filled) + "]")
        words.append(f"{format_size(done)}/{format_size(total)}" if in_bytes else f"{done}/{total}{unit}")
    elif done:
        words.append(format_size(done) if in_bytes else f"{done}{unit}")
    if progress.get("message"):
        words.append(str(progress["message"]))
    return " ".join(words)


def watch(client: Client, operation: Json, *, title: str) -> Json:
    """Show the operation until it ends; return its last record.

    Raises: the error it failed with.
    """
    display = Display(title, is_live=sys.stderr.isatty())
    last = operation
    was_asked = False
    while True:
        try:
            for record in operations.follow(client, last):
                last = record
                display.update(last)
            break
        except KeyboardInterrupt:
            display.close()
            if was_asked or not last.get("may_cancel"):
                print(f"insula: operation `{last['id']}` goes on: see `insula operation ls`", file=sys.stderr)
                raise
            was_asked = True
            print(f"insula: cancelling operation `{last['id']}`", file=sys.stderr)
            operations.cancel(client, str(last["id"]))
            last = {**last, "status": "running"}
    display.close()
    error: InsulaError | None = operations.failure(last)
    if error is not None:
        raise error
    return last

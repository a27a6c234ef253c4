# SPDX-License-Identifier: Apache-2.0
"""The lines of /etc/subuid and /etc/subgid: which ids are lent to whom.

Whoever holds a uid by such a line can be it (newuidmap(1)), and keeps its own groups meanwhile: it is not somebody else.
What the lines mean for tenants' ranges: `idmap.py`.  Out of scope: ids that a directory service lends (`subid:` in
nsswitch.conf(5)), of which nothing stands in the file.
"""

from dataclasses import dataclass
from pathlib import Path

from insula.tenant.idmap import Subordinate, parse_subordinates

SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


def lines_of(path: Path) -> tuple[Subordinate, ...]:
    """Read such a file; one that is not there has no lines."""
    try:
        return parse_subordinates(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a file held, and what it was known by then."""

    mark: tuple[int, ...]
    lines: tuple[Subordinate, ...]


class Lent:
    """To whom a file lends an id.  It is read again when it has changed.  From any thread."""

    def __init__(self, path: Path = SUBUID) -> None:
        self._path = path
        self._seen = _Seen((), ())

    def line_of(self, number: int) -> Subordinate | None:
        """Return the first line that lends an id."""
        return next((each for each in self._lines() if each.overlaps(number, 1)), None)

    def holder_of(self, number: int) -> str:
        """Return the first one to whom an id is lent; empty: nobody."""
        line = self.line_of(number)
        return line.owner if line is not None else ""

    def _lines(self) -> tuple[Subordinate, ...]:
        mark = self._mark()
        seen = self._seen
        if mark != seen.mark:
            # Marked as it was before it was read: what changes in between is seen next time.
            seen = self._seen = _Seen(mark, lines_of(self._path))
        return seen.lines

    def _mark(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

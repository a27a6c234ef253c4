# SPDX-License-Identifier: Apache-2.0
"""Who did what, and how it ended: a JSON line for each request, in files that are only appended to, chained by hashes.

Each line has a number and, as `prev`, the SHA-256 of the line before, also across files: a line that is changed, taken out
or put in is found by `verify` (`audit_chain.py`), lines cut off at either end by the head (`audit_files.py`).  Who has root's
rights can write all of it anew: `insula daemon --syslog` sends each line away as well.

Of a flood the lines beyond a budget are counted (`audit_folding.py`), so that no tenant turns over others' traces.
A crash costs no line that was whole: it is taken up at the next start.  What is torn is cut, and a line says so.

Bodies, queries, environments and tokens never come here: a line holds names, ids and codes.  A file beside holds room on
the disk, which is given up when the disk is full; from then on `require_room` refuses what would not be written down.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.model.errors import AuditUnavailable
from insula.tenant import audit_files
from insula.tenant.audit_chain import HEAD_LOST, taken_up
from insula.tenant.audit_entry import Entry, Fields
from insula.tenant.audit_files import HEAD, Log, Mark
from insula.tenant.audit_folding import WINDOW_S, Folding

LOG = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
RESERVED_BYTES = 1 << 20
"""So much may still be written after the disk is full."""
_RESERVE = "audit.reserve"
TORN = "torn_line_cut"
"""Result of the line that says that the last one was cut off in a crash."""


class Audit:
    """The open file.  From any thread."""

    def __init__(
        self, path: Path, *, tell: Callable[[str], None] | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        """tell: gets each line, too, and must not wait."""
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._head_fd = os.open(path.with_name(HEAD), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._reserve_fd = os.open(path.with_name(_RESERVE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._has_room = self._hold_room()
        self._tell = tell
        self._folding = Folding()
        self._timer: threading.Timer | None = None
        self._open()
        self._go_on()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _go_on(self) -> None:
        """Find where the log of the insulad before this one ends, and say what of it is lost."""
        torn = audit_files.cut_torn_end(self._descriptor)
        self._size -= torn
        with audit_files.opened(self.path) as log:
            self._head = taken_up(log)
        self._keep_head()
        if log.head is None and self._head.last.number:
            self._note(HEAD_LOST, "audit.head could not be read")
        if torn:
            self._note(TORN, f"{torn} bytes of a line without an end")

    @contextmanager
    def opened(self) -> Iterator[Log]:
        """Open the log as it is at this moment, between two lines, for reading."""
        with contextlib.ExitStack() as until_read:
            with self._lock:
                log = until_read.enter_context(audit_files.opened(self.path))
            yield log

    def _hold_room(self) -> bool:
        """Take room on the disk for the lines that come after it is full.  Returns: whether there was some."""
        try:
            os.posix_fallocate(self._reserve_fd, 0, RESERVED_BYTES)
        except OSError:
            return False
        return True

    def require_room(self) -> None:
        """Refuse what could not be written down.  Raises: AuditUnavailable."""
        with self._lock:
            self._has_room = self._has_room or self._hold_room()
            if not self._has_room:
                raise AuditUnavailable(
                    "cannot do this: the audit log has no room on its disk",
                    hint=f"make room on the file system of {self.path}",
                )

    def record(self, entry: Entry) -> None:
        """Append one line; of a flood, have it counted.  Raises: OSError."""
        with self._lock:
            if not self._folding.takes(entry, now=time.monotonic()):
                self._write(entry.fields())
                return
        self._settle_soon()

    def count(self, entry: Entry) -> None:
        """Have counted what is not worth a line each time."""
        with self._lock:
            self._folding.add(entry)
        self._settle_soon()

    def _settle_soon(self) -> None:
        with self._lock:
            if self._timer is not None or self._folding.is_empty:
                return
            timer = threading.Timer(WINDOW_S, self.settle)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # there may be no more threads
                self._write_all(self._folding.taken_out(now=time.monotonic()))
            else:
                self._timer = timer

    def settle(self) -> None:
        """Append the lines of what has been counted, as far as their tenants' budgets go."""
        with self._lock:
            self._timer = None
            self._write_all(self._folding.taken_out(now=time.monotonic()))
        self._settle_soon()

    def _write_all(self, counted: Iterable[Entry]) -> None:
        try:
            for entry in counted:
                self._write(entry.fields())
        except OSError as error:
            LOG.error("the audit log cannot be written", extra={"fields": {"reason": str(error)}})

    def _note(self, result: str, note: str) -> None:
        """Append a line of insulad's own, about the log."""
        about = {"method": "LOG", "path": self.path.name, "tenant": "", "decision": "allowed"}
        self._write({"who": "insulad", "kind": "daemon", **about, "result": result, "note": note})

    def _write(self, fields: Fields) -> None:
        """Append a line.  The lock is held."""
        if self._size >= self._max_bytes:
            self._rotate()
        number, at = self._head.last.number + 1, round(time.time(), 3)
        line = json.dumps({"n": number, "at": at, **fields, "prev": self._head.last.digest}).encode()
        self._append(line + b"\n")
        self._head = self._head._replace(last=Mark(number, hashlib.sha256(line).hexdigest()))
        self._keep_head()
        if self._tell is not None:
            self._tell(line.decode())

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._has_room:
                raise
        self._has_room = False
        os.ftruncate(self._reserve_fd, 0)
        return 0

    def _keep_head(self) -> None:
        os.pwrite(self._head_fd, self._head.encode(), 0)

    def _rotate(self) -> None:
        # The head first: a crash in between then leaves more than it tells, never less.
        self._head = self._head._replace(
            first=audit_files.first_after_rotation(self.path) or self._head.first
        )
        self._keep_head()
        os.close(self._descriptor)
        audit_files.rotate(self.path)
        self._open()

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._write_all(self._folding.emptied())
            for each in (self._descriptor, self._head_fd, self._reserve_fd):
                os.close(each)
            # Who comes later is told EBADF, whatever these numbers are by then.
            self._descriptor = self._head_fd = self._reserve_fd = -1

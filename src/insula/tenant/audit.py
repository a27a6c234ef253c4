# SPDX-License-Identifier: Apache-2.0
"""Who did what, and how it ended: a JSON line for each request, in files that are only appended to, chained by hashes.

Each line has a number and, as `prev`, the SHA-256 of the line before, also across files: a line that is changed, taken out
or put in is found by `verify` (`audit_chain.py`), lines cut off at either end by the head (`audit_files.py`).  Who has root's
rights can write all of it anew: `insula daemon --syslog` sends each line away as well.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from insula.model.errors import AuditUnavailable, Denied, QuotaExceeded, TooManyRequests, codes_below
from insula.model.grant import Action, Principal
from insula.tenant import audit_files
from insula.tenant.audit_chain import HEAD_LOST, taken_up
from insula.tenant.audit_files import HEAD, Log, Mark

LOG = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
RESERVED_BYTES = 1 << 20
"""So much may still be written after the disk is full."""
_ALWAYS = ("who", "tenant")
"""Fields that stand there also when they are empty."""
_REFUSALS = codes_below(Denied, QuotaExceeded, TooManyRequests)
Fields = dict[str, str | int | float | None]
_RESERVE = "audit.reserve"
TORN = "torn_line_cut"
"""Result of the line that says that the last one was cut off in a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    principal: Principal
    action: Action
    method: str
    path: str
    """Without the query."""
    result: str
    """`ok`, or the code of the error."""
    tenant: str = ""
    """Whose things it was about."""
    asked_tenant: str = ""
    """The tenant that was named, where it was refused."""
    is_granted: bool = True
    """Whether the right to do it was there."""
    made: str = ""
    """Id of what came to be; its name where it has no other."""
    made_name: str = ""
    source: str = ""
    """Where it came from: `unix`, or an address."""
    pid: int | None = None
    """The process that connected, on this host."""
    began: int | None = None
    """When that process began, in clock ticks after boot: with the pid it is nobody else until the next boot."""
    seconds: float = 0.0

    @property
    def is_allowed(self) -> bool:
        """Whether it was decided that it may be: what failed for another reason was allowed."""
        return self.is_granted and self.result not in _REFUSALS

    def fields(self) -> Fields:
        """Return what its line says, without what chains it."""
        who = self.principal
        every: Fields = {
            "who": who.name,
            "kind": who.kind.value,
            "uid": who.uid,
            "token": who.token,
            "from": self.source,
            "pid": self.pid,
            "pid_began": self.began,
            "action": self.action.value,
            "method": self.method,
            "path": self.path,
            "tenant": self.tenant,
            "asked_tenant": self.asked_tenant,
            "made": self.made,
            "made_name": self.made_name,
            "decision": "allowed" if self.is_allowed else "refused",
            "result": self.result,
            "ms": round(self.seconds * 1000, 1),
        }
        return {key: value for key, value in every.items() if value not in ("", None) or key in _ALWAYS}


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
        """Append one line.  Raises: OSError."""
        self._write(entry.fields())

    def _note(self, result: str, note: str) -> None:
        """Append a line of insulad's own, about the log."""
        about = {"method": "LOG", "path": self.path.name, "tenant": "", "decision": "allowed"}
        self._write({"who": "insulad", "kind": "daemon", **about, "result": result, "note": note})

    def _write(self, fields: Fields) -> None:
        with self._lock:
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
        os.close(self._descriptor)
        os.close(self._head_fd)
        os.close(self._reserve_fd)

# SPDX-License-Identifier: Apache-2.0
"""Who did what, and how it ended: a JSON line for each request, in files that are only appended to, chained by hashes.

    audit.log, audit.log.1 (older), … audit.log.9;  audit.head: number and hash of the last line

Each line has a number and, as `prev`, the SHA-256 of the line before, also across files: a line that is changed, taken out
or put in is found by `verify` (`audit_chain.py`), lines cut off at the end by the head.  Who has root's rights can write
all of it anew: `insula daemon --syslog` sends each line away as well.

Bodies, queries, environments and tokens never come here: a line holds names, ids and codes.  A file beside holds room on
the disk, which is given up when the disk is full; from then on `require_room` refuses what would not be written down.
"""

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from insula.model.errors import AuditUnavailable, Denied, QuotaExceeded, TooManyRequests, codes_below
from insula.model.grant import Action, Principal
from insula.tenant.audit_chain import FIRST_PREV, Head, read_head

LOG = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
KEPT_FILES = 10
RESERVED_BYTES = 1 << 20
"""So much may still be written after the disk is full."""
_ALWAYS = ("who", "tenant")
"""Fields that stand there also when they are empty."""
_REFUSALS = codes_below(Denied, QuotaExceeded, TooManyRequests)
_HEAD, _RESERVE = "audit.head", "audit.reserve"


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
        return self.result not in _REFUSALS


class Audit:
    """The open file.  From any thread."""

    def __init__(
        self, path: Path, *, tell: Callable[[str], None] | None = None, max_bytes: int = MAX_BYTES
    ) -> None:
        """tell: gets each line, too, and must not wait."""
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._head_fd = os.open(path.with_name(_HEAD), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._reserve_fd = os.open(path.with_name(_RESERVE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._has_room = self._hold_room()
        head = read_head(path) or Head(0, FIRST_PREV)
        self._number, self._prev = head
        self._open()
        self._tell = tell

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

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

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._has_room:
                    raise
                self._has_room = False
                os.ftruncate(self._reserve_fd, 0)

    def record(self, entry: Entry) -> None:
        """Append one line.  Raises: OSError."""
        with self._lock:
            if self._size >= self._max_bytes:
                self._rotate()
            line = self._line(entry)
            self._append(line + b"\n")
            self._size += len(line) + 1
            self._number, self._prev = self._number + 1, hashlib.sha256(line).hexdigest()
            os.pwrite(self._head_fd, f"{self._number:020d} {self._prev}\n".encode(), 0)
        if self._tell is not None:
            self._tell(line.decode())

    def _line(self, entry: Entry) -> bytes:
        fields = {
            "n": self._number + 1,
            "at": round(time.time(), 3),
            "who": entry.principal.name,
            "kind": entry.principal.kind.value,
            "uid": entry.principal.uid,
            "token": entry.principal.token,
            "from": entry.source,
            "pid": entry.pid,
            "pid_began": entry.began,
            "action": entry.action.value,
            "method": entry.method,
            "path": entry.path,
            "tenant": entry.tenant,
            "decision": "allowed" if entry.is_allowed else "refused",
            "result": entry.result,
            "ms": round(entry.seconds * 1000, 1),
            "prev": self._prev,
        }
        kept = {key: value for key, value in fields.items() if value not in ("", None) or key in _ALWAYS}
        return json.dumps(kept).encode()

    def _rotate(self) -> None:
        os.close(self._descriptor)
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
        self._open()

    def close(self) -> None:
        os.close(self._descriptor)
        os.close(self._head_fd)
        os.close(self._reserve_fd)

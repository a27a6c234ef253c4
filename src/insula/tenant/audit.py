# SPDX-License-Identifier: Apache-2.0
"""Who did what, and how it ended: one JSON line each in a file that is only appended to.

Bodies, environments and tokens never come here: a line holds names, ids and codes.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from insula.model.grant import Action, Principal


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


class Audit:
    """The open file.  Lines of several threads do not mix: each is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def record(self, entry: Entry) -> None:
        """Append one line."""
        line = {
            "at": round(time.time(), 3),
            "who": entry.principal.name,
            "uid": entry.principal.uid,
            "action": entry.action.value,
            "method": entry.method,
            "path": entry.path,
            "tenant": entry.tenant,
            "result": entry.result,
        }
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)

# SPDX-License-Identifier: Apache-2.0
"""Events as JSON, and files of them: a line each, replaced by a new file when full, the oldest removed.

events.jsonl, events.jsonl.1 (older), … as many as are kept
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from insula.export.sink import Unavailable
from insula.model.change import Change
from insula.model.export import Told


def json_of(told: Told) -> bytes:
    """Return an event as a JSON object: as `insula trace` and `insula events` tell it, and whose it is."""
    fields = {
        "type": "change" if isinstance(told.what, Change) else "lost",
        "at": told.at,
        "host": told.host,
        "tenant": told.tenant,
        "container": told.container,
        "name": told.name,
        **msgspec.to_builtins(told.what),
    }
    return msgspec.json.encode(fields)


class EventFile:
    """A `Carrier` into files."""

    def __init__(self, path: Path, *, max_bytes: int, kept: int) -> None:
        """kept: how many older files stay."""
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._descriptor = -1
        self._size = 0

    def carry(self, items: Sequence[Told]) -> int:
        data = b"".join(json_of(each) + b"\n" for each in items)
        try:
            self._make_room(len(data))
            self._append(data)
        except OSError as error:
            raise Unavailable(f"{self._path}: {error.strerror or error}") from error
        return 0

    def _make_room(self, count: int) -> None:
        if self._descriptor < 0:
            self._open()
        if self._size and self._size + count > self._max_bytes:
            self.close()
            self._rotate()
            self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        names = [
            self._path,
            *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._kept + 1)),
        ]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                newer.replace(older)
        if not self._kept:
            self._path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        """Append all of it, or nothing."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

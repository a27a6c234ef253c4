# SPDX-License-Identifier: Apache-2.0
"""A reader's part of the audit log, found from the end on: a log of 640 MiB costs who wants little of it little.

Which tenant a line is about is looked for in its bytes, and only what is found is decoded: in JSON's strings each `"` has a
`\\` before it, so that the bytes of the field stand in no other place.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from insula.tenant.audit_files import Log, blocks_backwards

_CHAIN = frozenset({"n", "prev"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a reader asks for."""

    tenant: str | None
    """Only lines about this one; None: all."""
    since: float = 0.0
    """UTC seconds."""
    chained: bool = True
    """With the numbers and hashes: they tell how much others ask."""


def found_backwards(log: Log, wanted: Wanted) -> Iterator[list[bytes]]:
    """Yield the wanted lines, the newest first, of one block after the other: often none.

    It ends where lines are older than what is wanted; the clock that they were written by is believed for a block.
    """
    needle = b"" if wanted.tenant is None else b'"tenant": ' + json.dumps(wanted.tenant).encode()
    for part in reversed(log.parts):
        if part.changed_at < wanted.since:
            return
        for block in blocks_backwards(part):
            lines = _found(block, needle, since=wanted.since)
            yield lines if wanted.chained else [_unchained(line) for line in lines]
            if wanted.since and _at(block[: block.find(b"\n")]) < wanted.since:
                return


def _found(block: bytes, needle: bytes, *, since: float) -> list[bytes]:
    if needle not in block:
        return []
    lines = reversed(block.splitlines(keepends=True))
    return [line for line in lines if needle in line and (not since or _at(line) >= since)]


def _unchained(line: bytes) -> bytes:
    try:
        fields = json.loads(line)
    except ValueError:
        return b""
    return json.dumps({key: value for key, value in fields.items() if key not in _CHAIN}).encode() + b"\n"


def _at(line: bytes) -> float:
    """Return when a line was written; of what is none: now or later, so that it is shown and ends nothing."""
    try:
        return float(json.loads(line)["at"])
    except (ValueError, KeyError, TypeError):
        return float("inf")

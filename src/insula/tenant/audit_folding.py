# SPDX-License-Identifier: Apache-2.0
"""Lines of the audit log that are one: what a tenant asks beyond its budget of lines is counted for a second.

    a change that was made        always a line
    what only looks, or failed    a line each within the budget; beyond it one line a second for each of who and result

A log of 640 MiB then lasts a flooding tenant more than a day; without a budget it lasted a quarter of an hour, and with it
everybody else's lines.  Callers whom nobody knows have one budget together.  Pure.
"""

from dataclasses import replace

from insula.model.grant import Action
from insula.tenant.audit_entry import Entry

LINES_PER_S = 10.0
"""Of one tenant, for as long as it likes."""
BURST = 200.0
"""So many at once."""
WINDOW_S = 1.0
_LOOKS = frozenset({"GET", "HEAD"})
_VARIOUS = "*"

Key = tuple[str, str, int | None, str, Action | None, str]


class Folding:
    """The budgets, and what is counted.  Not for two threads at once."""

    def __init__(self) -> None:
        self._budgets: dict[str, _Budget] = {}
        self._counted: dict[Key, Entry] = {}

    def takes(self, entry: Entry, *, now: float) -> bool:
        """Count an entry if it is not worth a line.  now: monotonic seconds.  Returns: whether it was counted."""
        if entry.method not in _LOOKS and entry.result == "ok":
            return False
        budget = self._budgets.setdefault(entry.principal.tenant, _Budget(now))
        if budget.spend(now):
            return False
        self.add(entry)
        return True

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        key = _key(entry)
        before = self._counted.get(key)
        self._counted[key] = entry if before is None else _one_of(before, entry)

    def taken_out(self) -> list[Entry]:
        """Return what has been counted, and begin anew."""
        counted, self._counted = list(self._counted.values()), {}
        return counted


class _Budget:
    """A bucket of lines that fills by and by."""

    def __init__(self, now: float) -> None:
        self._left, self._at = BURST, now

    def spend(self, now: float) -> bool:
        self._left = min(BURST, self._left + (now - self._at) * LINES_PER_S)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _key(entry: Entry) -> Key:
    who = entry.principal
    return who.tenant, who.name, who.uid, entry.tenant, entry.action, entry.result


def _one_of(before: Entry, entry: Entry) -> Entry:
    """Return an entry for both: what differs is `*`, or left out."""
    token = _same(before.principal.token, entry.principal.token)
    is_one_process = (before.pid, before.began) == (entry.pid, entry.began)
    return replace(
        before,
        principal=replace(before.principal, token=token),
        method=_same(before.method, entry.method),
        path=_same(before.path, entry.path),
        asked_tenant=_same(before.asked_tenant, entry.asked_tenant),
        source=_same(before.source, entry.source),
        pid=before.pid if is_one_process else None,
        began=before.began if is_one_process else None,
        is_granted=before.is_granted and entry.is_granted,
        seconds=max(before.seconds, entry.seconds),
        times=before.times + entry.times,
    )


def _same(one: str, other: str) -> str:
    return one if one == other else _VARIOUS

# SPDX-License-Identifier: Apache-2.0
"""Lines of the audit log that are one: what a tenant asks beyond its budgets of lines is counted.

    what only looks, or failed    a line each within `LOOKS`; beyond it one for each of who, action and result
    a change that was made        a line each within `CHANGES`, which no work with containers uses up; beyond it likewise
    lines of what was counted     as many as `COUNTS` has, each second; the rest is counted on
    changes of administrators     always a line: they could turn the log over by other ways, and must answer for most

All three together are less than a day's share of the files that are kept, so a flooding tenant needs longer than that to
turn the log over, and with it everybody else's lines; without budgets it needed a quarter of an hour.  Callers whom nobody
knows have one budget together.  Pure.
"""

import json
from dataclasses import dataclass, field, replace

from insula.model.grant import Action
from insula.tenant.audit_entry import Entry
from insula.tenant.pace import Bucket


@dataclass(frozen=True, slots=True)
class Budget:
    """Lines of one tenant."""

    per_s: int
    """For as long as it likes."""
    burst: int
    """So many at once."""


LOOKS = Budget(4, 200)
CHANGES = Budget(8, 2000)
COUNTS = Budget(4, 200)
LINE_BYTES = 400
"""A line with a container's full id in its path has so many; a longer one counts as several."""
CHAIN_BYTES = 160
"""Of them: number, time and the hash of the line before."""
WINDOW_S = 1.0
_VARIOUS = "*"

Key = tuple[str, str, int | None, str, Action | None, str, bool]


@dataclass(slots=True)
class _Purse:
    """What is left of one budget to each tenant."""

    budget: Budget
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def pays(self, entry: Entry, *, now: float) -> bool:
        rate = self.budget.per_s
        full = Bucket.full(rate, now=now, burst_s=self.budget.burst / rate)
        bucket = self.buckets.setdefault(entry.principal.tenant, full)
        return bucket.try_take(rate, now=now, places=_lines(entry))


class Folding:
    """The budgets, and what is counted.  Not for two threads at once."""

    def __init__(self) -> None:
        self._looks, self._changes, self._counts = _Purse(LOOKS), _Purse(CHANGES), _Purse(COUNTS)
        self._counted: dict[Key, Entry] = {}

    def takes(self, entry: Entry, *, now: float) -> bool:
        """Count an entry if it is not worth a line.  now: monotonic seconds.  Returns: whether it was counted."""
        who = entry.principal
        if entry.is_change and (who.is_admin or who.is_peer):
            return False
        if (self._changes if entry.is_change else self._looks).pays(entry, now=now):
            return False
        self.add(entry)
        return True

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        key = _key(entry)
        before = self._counted.get(key)
        self._counted[key] = entry if before is None else _one_of(before, entry)

    def taken_out(self, *, now: float) -> list[Entry]:
        """Return what has been counted and may have a line now, the oldest first; the rest is counted on."""
        keys = [key for key, entry in self._counted.items() if self._counts.pays(entry, now=now)]
        return [self._counted.pop(key) for key in keys]

    def emptied(self) -> list[Entry]:
        """Return all that has been counted: nobody counts on."""
        counted, self._counted = list(self._counted.values()), {}
        return counted

    @property
    def is_empty(self) -> bool:
        return not self._counted


def _lines(entry: Entry) -> float:
    """Return as how many lines an entry counts."""
    return max(1.0, (CHAIN_BYTES + len(json.dumps(entry.fields()))) / LINE_BYTES)


def _key(entry: Entry) -> Key:
    who = entry.principal
    return who.tenant, who.name, who.uid, entry.tenant, entry.action, entry.result, entry.is_change


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
        made=_same(before.made, entry.made),
        made_name=_same(before.made_name, entry.made_name),
        source=_same(before.source, entry.source),
        pid=before.pid if is_one_process else None,
        began=before.began if is_one_process else None,
        is_granted=before.is_granted and entry.is_granted,
        seconds=max(before.seconds, entry.seconds),
        times=before.times + entry.times,
    )


def _same(one: str, other: str) -> str:
    return one if one == other else _VARIOUS

# SPDX-License-Identifier: Apache-2.0
"""What `insula events` tells: a change in the life of a container.  Pure."""

from typing import TypeAlias

from insula.model.lifecycle import Status
from insula.model.monitor import Event, Lost, in_words
from insula.model.record import ContainerRecord, Fact

#: Status before (None: there was none) and after → what has happened.  Other pairs are named after the status that they end in.
_NAMES = {
    (None, Status.CREATED): "created",
    (None, Status.RESTORING): "arriving",
    (Status.CREATED, Status.RUNNING): "started",
    (Status.EXITED, Status.RUNNING): "started",
    (Status.PAUSED, Status.RUNNING): "unpaused",
    (Status.RESTORING, Status.RUNNING): "restored",
    (Status.CHECKPOINTING, Status.RUNNING): "checkpointed",
    (Status.MIGRATING, Status.RUNNING): "stayed",
    (Status.CHECKPOINTING, Status.EXITED): "checkpointed",
}


class Change(Fact, kw_only=True, frozen=True, tag="change"):
    """Something has happened to a container."""

    at: float
    """UTC seconds since the epoch."""
    container: str
    name: str
    tenant: str
    event: str
    """created, started, paused, unpaused, exited, moved, arriving, restored, removed, renamed, alarm, profile_drift, unwatched …"""
    detail: str = ""
    """An exit code, the other host, the new name."""


class Alarm(Change, kw_only=True, frozen=True):
    """A rule has found something."""

    rule: str
    seen: Event


def alarm_of(whose: ContainerRecord | Alarm, *, rule: str, seen: Event) -> Alarm:
    """Return the alarm of a rule about a container, or of another alarm: its words are made of what was seen."""
    container = whose.container if isinstance(whose, Alarm) else whose.id
    return Alarm(
        at=seen.at,
        container=container,
        name=whose.name,
        tenant=whose.tenant,
        event="alarm",
        detail=f"{rule}: {in_words(seen)}",
        rule=rule,
        seen=seen,
    )


class ProfileDrift(Change, kw_only=True, frozen=True):
    """A container does, or tries to, what its profile lacks."""

    profile: str
    seen: Event


def drift_of(whose: ContainerRecord | ProfileDrift, *, profile: str, seen: Event) -> ProfileDrift:
    """Return what is told of a container, or of such a telling in other words: they are made of what was seen."""
    return ProfileDrift(
        at=seen.at,
        container=whose.container if isinstance(whose, ProfileDrift) else whose.id,
        name=whose.name,
        tenant=whose.tenant,
        event="profile_drift",
        detail=f"{profile}: {in_words(seen)}",
        profile=profile,
        seen=seen,
    )


ChangeLine: TypeAlias = Change | Lost


def change_of(before: ContainerRecord | None, after: ContainerRecord | None, *, at: float) -> Change | None:
    """Say what has happened between two records of a container; None: nothing that anybody waits for."""
    record = after or before
    if record is None:
        return None
    event, detail = _named(before, after)
    if not event:
        return None
    return Change(
        at=at, container=record.id, name=record.name, tenant=record.tenant, event=event, detail=detail
    )


def _named(before: ContainerRecord | None, after: ContainerRecord | None) -> tuple[str, str]:
    if after is None:
        # What has moved is removed here without having ended.
        return ("", "") if before is None or before.status is Status.MOVED else ("removed", "")
    old = before.status if before else None
    if before is not None and before.name != after.name:
        return "renamed", f"from {before.name}"
    if old is after.status:
        return "", ""
    return _NAMES.get((old, after.status), after.status.value), _detail(after)


def _detail(record: ContainerRecord) -> str:
    if record.status is Status.EXITED and record.exit_code is not None:
        return f"exit code {record.exit_code}" + (f": {record.error}" if record.error else "")
    if record.status is Status.MOVED:
        return f"to host {record.owner}"
    return ""

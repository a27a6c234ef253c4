# SPDX-License-Identifier: Apache-2.0
"""The life of a container as one table: status × event → status.

A pair that is not in the table is refused with `WrongState`, naming both.  Pure and standard library only.
"""

from enum import StrEnum

from insula.model.errors import WrongState


class Status(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    CHECKPOINTING = "checkpointing"
    MIGRATING = "migrating"
    EXITED = "exited"
    RESTORING = "restoring"
    MOVED = "moved"
    """Another host owns it: nothing of it runs here, and its record goes as soon as that is cleaned up."""
    REMOVING = "removing"


class Event(StrEnum):
    START = "start"
    EXIT = "exit"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_KEEPS_RUNNING = "checkpoint keeps running"
    RESTORE = "restore"
    RESTORED = "restored"
    MIGRATE = "migrate"
    ABORT_MIGRATION = "abort migration"
    COMMIT_MIGRATION = "commit migration"
    REMOVE = "remove"


TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.CREATED, Event.START): Status.RUNNING,
    (Status.CREATED, Event.RESTORE): Status.RESTORING,
    (Status.CREATED, Event.REMOVE): Status.REMOVING,
    (Status.RUNNING, Event.EXIT): Status.EXITED,
    (Status.RUNNING, Event.PAUSE): Status.PAUSED,
    (Status.RUNNING, Event.CHECKPOINT): Status.CHECKPOINTING,
    (Status.RUNNING, Event.MIGRATE): Status.MIGRATING,
    (Status.PAUSED, Event.UNPAUSE): Status.RUNNING,
    (Status.PAUSED, Event.EXIT): Status.EXITED,
    (Status.CHECKPOINTING, Event.CHECKPOINT_KEEPS_RUNNING): Status.RUNNING,
    (Status.CHECKPOINTING, Event.EXIT): Status.EXITED,
    (Status.MIGRATING, Event.ABORT_MIGRATION): Status.RUNNING,
    (Status.MIGRATING, Event.COMMIT_MIGRATION): Status.MOVED,
    (Status.MIGRATING, Event.EXIT): Status.EXITED,
    (Status.EXITED, Event.START): Status.RUNNING,
    (Status.EXITED, Event.RESTORE): Status.RESTORING,
    (Status.EXITED, Event.REMOVE): Status.REMOVING,
    (Status.RESTORING, Event.RESTORED): Status.RUNNING,
    (Status.RESTORING, Event.EXIT): Status.EXITED,
    (Status.MOVED, Event.REMOVE): Status.REMOVING,
    (Status.REMOVING, Event.REMOVE): Status.REMOVING,
}

#: Statuses in which the container has a living pid 1 on this host.
ALIVE = frozenset({Status.RUNNING, Status.PAUSED, Status.CHECKPOINTING, Status.MIGRATING})
#: Statuses in which nothing of it runs, and it can be started.
AT_REST = frozenset({Status.CREATED, Status.EXITED})

_CURES = {
    Event.START: "it is already started",
    Event.REMOVE: "stop it first, or remove it with --force",
    Event.PAUSE: "only a running container can be paused",
    Event.UNPAUSE: "it is not paused",
    Event.CHECKPOINT: "only a running container can be checkpointed",
    Event.MIGRATE: "only a running container can be migrated",
    Event.RESTORE: "only a stopped container can be restored",
}


def can(status: Status, event: Event) -> bool:
    """Tell whether the event is allowed in that status."""
    return (status, event) in TRANSITIONS


def after(status: Status, event: Event, *, name: str = "container") -> Status:
    """Return the status that follows.

    Raises: WrongState naming container, event and status.
    """
    try:
        return TRANSITIONS[(status, event)]
    except KeyError:
        raise WrongState(
            f"cannot {event.value} `{name}`: it is {status.value}",
            hint=_CURES.get(event, ""),
            status=status.value,
        ) from None

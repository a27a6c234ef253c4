# SPDX-License-Identifier: Apache-2.0
"""Who asks, for what, and the proof that it was allowed.

No runtime verb can be called without a `Grant`.  Only `tenant/check.py` builds one for a principal; `daemon/wiring.py`
builds them for the system's own acts (restart policies, recovery).  A house test holds this.  Pure.
"""

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What a route lets its caller do.  A required field of each route."""

    READ = "read"
    CREATE = "create"
    CONTROL = "control"
    """start, stop, pause, resize, rename …"""
    ENTER = "enter"
    """attach, exec, copy, logs."""
    DELETE = "delete"
    CHECKPOINT = "checkpoint"
    MIGRATE = "migrate"
    ADMIN = "admin"
    """hosts, uplinks, other tenants."""
    PEER = "peer"
    """Calls between paired hosts."""
    OPEN = "open"
    """Anyone who reaches the socket: version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who gives a command: a Unix user, or the name of a pinned certificate."""

    name: str
    uid: int | None = None
    is_admin: bool = False
    is_peer: bool = False

    @property
    def tenant(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The right of `principal` to do `action` within `tenant`."""

    principal: Principal
    action: Action
    tenant: str
    """The tenant whose things are touched (for an admin possibly another's)."""

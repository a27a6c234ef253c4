# SPDX-License-Identifier: Apache-2.0
"""Who asks, for what, and the proof that it was allowed.

No runtime verb can be called without a `Grant`.  Only `tenant/check.py` builds one for a principal; `daemon/wiring.py`
builds them for the system's own acts (restart policies, recovery).  A house test holds this.  Pure.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What a route lets its caller do.  A required field of each route, and a scope of tokens."""

    READ = "read"
    """See that things are there, and how they are."""
    LOGS = "logs"
    """Read what a container wrote."""
    CREATE = "create"
    CONTROL = "control"
    """start, stop, pause, resize, rename …"""
    ENTER = "enter"
    """attach, exec, copy."""
    DELETE = "delete"
    CHECKPOINT = "checkpoint"
    MIGRATE = "migrate"
    TOKEN = "token"
    """Make, list and revoke one's own tokens."""
    OPERATE = "operate"
    """This host as a whole: drain it, see its peers."""
    ADMIN = "admin"
    """Pair hosts, users and their roles, policy, the last word about a container."""
    PEER = "peer"
    """Calls between paired hosts."""
    OPEN = "open"
    """Anyone who reaches the socket: version, who am I."""


class Role(StrEnum):
    """What a user may do at all; the table of rights stands in `tenant/check.py`."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


class Kind(StrEnum):
    """How a principal has shown who it is."""

    UNIX = "unix"
    """By the kernel's word about the other end of a unix socket."""
    REMOTE = "remote"
    """By the pinned client certificate of a user."""
    TOKEN = "token"
    """By a user's token."""
    HOST = "host"
    """By the pinned certificate of a paired host."""
    NOBODY = "nobody"
    """Not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who gives a command: a Unix user, a remote user, one of their tokens, or a paired host."""

    name: str
    """Of the user or host; a token has its owner's."""
    tenant: str = ""
    """Whose things it works with; empty when built: the one called as the principal."""
    kind: Kind = Kind.UNIX
    role: Role = Role.USER
    """Means nothing for hosts and nobody."""
    uid: int | None = None
    gid: int | None = None
    groups: frozenset[int] = frozenset()
    """Groups that both the connection and the user database of this moment name."""
    token: str = ""
    """Id of the token, for the audit."""
    scopes: frozenset[Action] | None = None
    """A token's: nothing else is allowed.  None: all that the role may."""
    container: str = ""
    """A token's: id of the only container that it is for."""

    def __post_init__(self) -> None:
        if not self.tenant:
            object.__setattr__(self, "tenant", self.name)

    @property
    def is_admin(self) -> bool:
        """Whether it has an admin's role, and is neither a host nor a token for less."""
        may = self.scopes is None or Action.ADMIN in self.scopes
        return self.role is Role.ADMIN and self.is_user and may

    @property
    def is_user(self) -> bool:
        return self.kind in (Kind.UNIX, Kind.REMOTE, Kind.TOKEN) and self.name != ""

    @property
    def is_peer(self) -> bool:
        return self.kind is Kind.HOST


TENANT_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""Names that are safe as a folder and in a message; who is called otherwise is `uid<N>`."""
EVERY_TENANT = "*"
"""In place of a tenant's name, where all of them are meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The right of `principal` to do `action` within `tenant`."""

    principal: Principal
    action: Action
    tenant: str
    """The tenant whose things are touched (for admins and operators possibly another's)."""


def scope(grant: Grant) -> str | None:
    """Return the tenant to search in, None for all of them."""
    return None if grant.tenant == EVERY_TENANT else grant.tenant

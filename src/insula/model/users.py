# SPDX-License-Identifier: Apache-2.0
"""Users, their roles and tokens, as stored, as wished and as shown.  Pure; who may do what: `tenant/check.py`."""

from enum import StrEnum
from typing import Annotated

import msgspec

from insula.model.grant import Action, Kind, Role
from insula.model.record import Fact
from insula.model.spec import Wish

DAY_S = 86_400
MAX_TOKEN_S = 366 * DAY_S
DEFAULT_TOKEN_S = 30 * DAY_S
MAX_CERTIFICATE_S = 3650 * DAY_S
DEFAULT_CERTIFICATE_S = 365 * DAY_S

TokenLife = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKEN_S)]
CertificateLife = Annotated[int, msgspec.Meta(ge=1, le=MAX_CERTIFICATE_S)]


class Origin(StrEnum):
    """Where a user comes from."""

    UNIX = "unix"
    GROUP = "group"
    """Not one user but the members of a Unix group; its name begins with `@`."""
    REMOTE = "remote"


class Standing(StrEnum):
    """What an administrator has said about a user."""

    SEEN = "seen"
    """Nothing: written down when it first called, so that its name stays bound to its uid."""
    KNOWN = "known"
    REMOVED = "removed"
    """It may do nothing, and nobody else gets its name."""


class UserRecord(Fact, kw_only=True, frozen=True):
    name: str
    origin: Origin
    tenant: str
    role: Role = Role.USER
    number: int | None = None
    """Uid of a Unix user, gid of a group."""
    fingerprint: str = ""
    """SHA-256 of a remote user's certificate (DER), hexadecimal: the pin."""
    standing: Standing = Standing.KNOWN
    created_at: float = 0.0
    expires_at: float = 0.0
    """0: never."""


class TokenRecord(Fact, kw_only=True, frozen=True):
    """A token, without its secret: only a digest of that is stored, beside this."""

    id: str
    owner: str
    uid: int | None
    """The owner's; None for a remote one."""
    tenant: str
    """The only one it works with; `*`, an admin's, is all."""
    scopes: tuple[Action, ...]
    container: str = ""
    """Id of the only container that it is for; empty: all of the tenant."""
    label: str = ""
    created_at: float = 0.0
    expires_at: float = 0.0


class UserWish(Wish, kw_only=True, frozen=True):
    """Make a user known.  A name that begins with `@` is a Unix group."""

    name: str
    remote: bool = False
    tenant: str = ""
    """Empty: its own, called as it is (a group: as the group)."""
    role: Role = Role.USER
    expires_s: CertificateLife | None = None
    """None: a Unix user or group stays; a certificate ends after a year."""


class UserChange(Wish, kw_only=True, frozen=True):
    """What is None stays as it is."""

    tenant: str | None = None
    role: Role | None = None
    by_groups: bool = False
    """Let its groups decide about a Unix user's tenant and role, as for one that no admin has named."""
    rebind: bool = False
    """A Unix user or group has got another number, and is the same one."""


class TokenWish(Wish, kw_only=True, frozen=True):
    scopes: tuple[Action, ...] = (Action.READ,)
    expires_s: TokenLife = DEFAULT_TOKEN_S
    container: str = ""
    """Name or id."""
    label: str = ""


class UserAdded(Fact, kw_only=True, frozen=True):
    user: UserRecord
    identity: str = ""
    """A remote user's key, certificate and this host's certificate in one file (PEM); never shown again."""


class TokenMade(Fact, kw_only=True, frozen=True):
    token: TokenRecord
    secret: str
    """Never shown again."""


class Identity(Fact, kw_only=True, frozen=True):
    """Who the caller is, as insulad sees it."""

    name: str
    tenant: str
    kind: Kind
    role: Role | None
    """None: neither a user nor a token."""
    actions: tuple[Action, ...]
    """What it may do within its tenant."""
    everywhere: tuple[Action, ...]
    """What it may do within every tenant."""
    uid: int | None = None
    token: str = ""
    container: str = ""

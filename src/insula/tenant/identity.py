# SPDX-License-Identifier: Apache-2.0
"""From what a connection has shown, and what is known of users now, to a principal.  Asked at each request.

    uid ──► the name that the user database has for it now ──► the record of that name ──► tenant and role
            must be the name it had when first seen;            given by an admin, else by a group, else its own
            the name must still be this uid's
    certificate ──► the remote user whose pin it is             token ──► its owner, as above, narrowed by the token

A name is bound to the uid that first called under it, for an account may be deleted and its name or its uid given to
somebody else: then an administrator has to say who it is (`insula user add`, `insula user set --rebind`).
What the kernel and the user database say is read in `api/auth.py`.  Apart from writing a new name down: pure.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from insula.model.errors import BadRequest, Denied, Unauthenticated
from insula.model.grant import TENANT_NAME, Kind, Principal, Role
from insula.model.users import Origin, Standing, TokenRecord, UserRecord

_UID_NAME = re.compile(r"uid[0-9]+")
"""Belongs to that uid: a user who is called so and has another is named by his own."""
_TOKEN = re.compile(r"insula_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TOKEN_ID_BYTES, _TOKEN_SECRET_BYTES = 6, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the user database says now about a uid."""

    uid: int
    login: str | None
    """None: it does not know it."""
    gid: int | None = None
    groups: frozenset[int] = frozenset()
    """Those that the connection has, too."""
    lent_to: str = ""
    """Who may be this uid by /etc/subuid, although it is no account; empty: nobody."""


class Directory(Protocol):
    """The known users: `runtime/people.py`."""

    def find_user(self, name: str) -> UserRecord | None: ...
    def find_user_of_uid(self, uid: int) -> UserRecord | None: ...
    def find_user_of_tenant(self, tenant: str, *, other_than: str) -> UserRecord | None: ...
    def list_groups(self) -> list[UserRecord]: ...
    def save_user(self, record: UserRecord) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an identity is decided by, besides what was shown."""

    directory: Directory
    admins: frozenset[str]
    """Of `insula daemon --admin`."""
    now: float
    group_name: Callable[[int], str]
    """What the user database calls a gid now; empty: nothing."""


def user_name(uid: int, login: str | None) -> str:
    """Return what a user is called here."""
    if login is not None and TENANT_NAME.fullmatch(login) and not _UID_NAME.fullmatch(login):
        return login
    return f"uid{uid}"


def is_uid_name(name: str) -> bool:
    """Tell whether a name is one of those that insula gives to uids without a usable account."""
    return _UID_NAME.fullmatch(name) is not None


def check_tenant_name(name: str) -> None:
    """Raises: BadRequest for what cannot be a tenant's name."""
    if not TENANT_NAME.fullmatch(name):
        raise BadRequest(
            f"cannot call a tenant `{name[:80]}`",
            hint="small letters, digits, `_`, `-`, at most 32, beginning with a letter",
        )


def of_unix(account: Account, known: Known) -> Principal:
    """Return who a Unix user is.

    Raises: Unauthenticated if its name or its uid was somebody else's; Denied if its right was taken away, or if the uid
    is lent to somebody and no admin has added it.
    """
    name = user_name(account.uid, account.login)
    if account.uid == 0:
        tenant, role = name, Role.ADMIN
    else:
        record = _bound_record(account, name, known=known)
        record = (
            _by_group(record, account.groups, known=known) if record.standing is Standing.SEEN else record
        )
        tenant, role = record.tenant, Role.ADMIN if name in known.admins else record.role
    return Principal(
        name=name, tenant=tenant, role=role, uid=account.uid, gid=account.gid, groups=account.groups
    )


def of_remote(record: UserRecord, known: Known) -> Principal:
    """Return who the owner of a pinned certificate is.  Raises: Denied."""
    _require_standing(record, known)
    return Principal(name=record.name, tenant=record.tenant, role=record.role, kind=Kind.REMOTE)


def of_token(record: TokenRecord, owner: Principal) -> Principal:
    """Return who a token is: its owner as of now, narrowed.

    Raises: Unauthenticated if the owner works with another tenant than when it was made.
    """
    if record.tenant != owner.tenant and not owner.is_admin:
        raise refused_token()
    return Principal(
        name=owner.name,
        tenant=record.tenant,
        role=owner.role,
        kind=Kind.TOKEN,
        uid=owner.uid,
        gid=owner.gid,
        groups=owner.groups,
        token=record.id,
        scopes=frozenset(record.scopes),
        container=record.container,
    )


def new_token() -> tuple[str, str, bytes]:
    """Make a token.  Returns: its id, the whole text, the digest to store."""
    token_id, secret = secrets.token_hex(_TOKEN_ID_BYTES), secrets.token_urlsafe(_TOKEN_SECRET_BYTES)
    return token_id, f"insula_{token_id}_{secret}", _digest(secret)


def token_id_of(text: str) -> str:
    """Return the id in a token's text.  Raises: Unauthenticated if it is none."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise refused_token()
    return match[1]


def check_token(text: str, record: TokenRecord, *, digest: bytes, now: float) -> None:
    """Raises: Unauthenticated unless the secret is the token's and its time is not over."""
    match = _TOKEN.fullmatch(text)
    is_right = match is not None and secrets.compare_digest(_digest(match[2]), digest)
    if not is_right or record.expires_at <= now:
        raise refused_token()


def refused_token() -> Unauthenticated:
    """Return the one error for all tokens that do not count: nobody learns which of them there are."""
    return Unauthenticated(
        "cannot accept the token: unknown, expired or revoked", hint="make a new one: insula token create"
    )


def _digest(secret: str) -> bytes:
    # A plain digest is enough for a secret of 256 random bits: there is nothing to guess from.
    return hashlib.sha256(secret.encode()).digest()


def _bound_record(account: Account, name: str, *, known: Known) -> UserRecord:
    """Return the record of a Unix user, written down now if neither name nor uid was ever seen."""
    uid = account.uid
    held = known.directory.find_user_of_uid(uid)
    if held is not None and held.name != name:
        raise Unauthenticated(
            f"cannot tell who uid `{uid}` is: it was called `{held.name}` when first seen, now `{name}`",
            hint=f"an admin decides: `insula user add {name}` makes it a new user without {held.name}'s things",
            uid=uid,
        )
    record = known.directory.find_user(name)
    if account.lent_to and (record is None or record.standing is Standing.SEEN):
        # Else one user is as many as its line has uids, each with a tenant, limits and a range of uids.
        raise Denied(
            f"cannot serve uid `{uid}`: it is no account, and `/etc/subuid` lends it to `{account.lent_to}`",
            hint=f"call as yourself, outside of the user namespace; an admin may let it in: insula user add {name}",
            uid=uid,
        )
    if record is None:
        return _first_seen(uid, name, known=known)
    if record.origin is not Origin.UNIX or record.number != uid:
        raise Unauthenticated(
            f"cannot tell who `{name}` is: the user of that name is not uid `{uid}`",
            hint=f"an admin decides: `insula user set {name} --rebind` says that it is the same one",
            uid=uid,
        )
    _require_standing(record, known)
    return record


def _first_seen(uid: int, name: str, *, known: Known) -> UserRecord:
    other = known.directory.find_user_of_tenant(name, other_than=name)
    if other is not None:
        raise Unauthenticated(
            f"cannot give `{name}` a tenant: one of that name is other users'",
            hint=f"an admin decides: insula user add {name} --tenant TENANT",
            uid=uid,
        )
    record = UserRecord(
        name=name,
        origin=Origin.UNIX,
        tenant=name,
        number=uid,
        standing=Standing.SEEN,
        created_at=known.now,
    )
    known.directory.save_user(record)
    return record


def _by_group(record: UserRecord, groups: frozenset[int], *, known: Known) -> UserRecord:
    """Lay over the tenant and role of the first known group, by name, that the user is in."""
    if not groups:
        return record
    for group in known.directory.list_groups():
        # By number and name: a gid may have been given to another group since.
        if group.number not in groups or _is_over(group, known):
            continue
        if known.group_name(group.number) == group.name.removeprefix("@"):
            return replace(record, tenant=group.tenant, role=group.role)
    return record


def _require_standing(record: UserRecord, known: Known) -> None:
    if record.standing is Standing.REMOVED or _is_over(record, known):
        raise Denied(
            f"cannot serve `{record.name}`: its right has ended",
            hint="an admin gives it back: insula user add",
        )


def _is_over(record: UserRecord, known: Known) -> bool:
    return record.expires_at != 0 and record.expires_at <= known.now

# SPDX-License-Identifier: Apache-2.0
"""Users and tokens: made, changed, taken away.  Who one is at a request: `api/auth.py` and `tenant/identity.py`.

Whatever is changed here counts from the next request on, and what stands open is judged again at once.
"""

import grp
import pwd
import time
from collections.abc import Callable

from msgspec.structs import replace

from insula.daemon.authority import UserAuthority
from insula.daemon.pki import Pki, split_address
from insula.model.errors import BadRequest, Conflict, Denied, LimitRefused, NameTaken, TokenNotFound
from insula.model.grant import EVERY_TENANT, TENANT_NAME, Action, Grant, Role, scope
from insula.model.users import (
    DEFAULT_CERTIFICATE_S,
    Origin,
    Standing,
    TokenMade,
    TokenRecord,
    TokenWish,
    UserAdded,
    UserChange,
    UserRecord,
    UserWish,
)
from insula.runtime.store import Store
from insula.tenant import identity
from insula.tenant.check import OWN, SCOPES

MAX_TOKENS = 100
"""Of one user."""
MAX_LABEL = 80


class UserDesk:
    """The API's verbs for users and tokens."""

    def __init__(
        self, store: Store, pki: Pki, *, host: str, address: str, on_change: Callable[[], None]
    ) -> None:
        """address: of our TLS listener, for what remote users are told.  on_change: judges what stands open."""
        self._store = store
        self._pki = pki
        self._authority = UserAuthority(pki)
        self._host = host
        self._address = address
        self._on_change = on_change

    def list_users(self) -> list[UserRecord]:
        return self._store.list_users()

    def add_user(self, wish: UserWish) -> UserAdded:
        """Make a user known.

        Raises: BadRequest for a name or tenant that cannot be; NameTaken; Conflict for a name that was another uid's.
        """
        if wish.tenant:
            identity.check_tenant_name(wish.tenant)
        if wish.remote:
            added = self._add_remote(wish)
        elif wish.name.startswith("@"):
            added = UserAdded(user=self._save(self._new(wish, Origin.GROUP, number=_gid(wish.name))))
        else:
            added = UserAdded(user=self._add_unix(wish))
        self._on_change()
        return added

    def _add_unix(self, wish: UserWish) -> UserRecord:
        uid = _uid(wish.name)
        known = self._store.find_user(wish.name)
        if known is not None and known.origin is not Origin.UNIX:
            raise NameTaken(f"cannot add user `{wish.name}`: a remote user is called so")
        if known is not None and known.number != uid and wish.tenant in ("", known.tenant):
            raise Conflict(
                f"cannot add user `{wish.name}`: that name was another uid's before, now it is `{uid}`",
                hint=f"the same person: insula user set {wish.name} --rebind; another one: --tenant TENANT",
            )
        if known is not None and known.standing is Standing.KNOWN and known.number == uid:
            raise NameTaken(f"cannot add user `{wish.name}`: it is known", hint="insula user set changes it")
        record = self._new(wish, Origin.UNIX, number=uid)
        if known is not None and not wish.tenant:
            record = replace(record, tenant=known.tenant)
        return self._save(record)

    def _add_remote(self, wish: UserWish) -> UserAdded:
        if not TENANT_NAME.fullmatch(wish.name):
            raise BadRequest(
                f"cannot call a user `{wish.name[:80]}`", hint="small letters, digits, `_`, `-`, at most 32"
            )
        if not self._address:
            raise BadRequest(
                "cannot add a remote user: this insulad listens to no other machine",
                hint="insula daemon --listen HOST:PORT",
            )
        if self._store.find_user(wish.name) is not None or _is_account(wish.name):
            raise NameTaken(
                f"cannot add user `{wish.name}`: another one is called so", hint="choose another name"
            )
        seconds = wish.expires_s or DEFAULT_CERTIFICATE_S
        issued = self._authority.issue(wish.name, seconds=seconds)
        record = self._new(replace(wish, expires_s=seconds), Origin.REMOTE, number=None)
        record = self._save(replace(record, fingerprint=issued.fingerprint))
        lines = (
            f"# {wish.name} on host {self._host}: whoever has this file is this user; keep it secret\n",
            f"# insula-host: {self._address}\n" if has_host(self._address) else "",
            issued.key,
            issued.certificate,
            self._pki.certificate_pem,
        )
        return UserAdded(user=record, identity="".join(lines))

    def _new(self, wish: UserWish, origin: Origin, *, number: int | None) -> UserRecord:
        now = time.time()
        tenant = wish.tenant or wish.name.removeprefix("@")
        identity.check_tenant_name(tenant)
        if not wish.tenant and self._store.find_user_of_tenant(tenant, other_than=wish.name) is not None:
            raise NameTaken(
                f"cannot give `{wish.name}` the tenant `{tenant}`: others work with it",
                hint=f"--tenant {tenant}, if it is to work with them, else another one",
            )
        return UserRecord(
            name=wish.name,
            origin=origin,
            tenant=tenant,
            role=wish.role,
            number=number,
            created_at=now,
            expires_at=now + wish.expires_s if wish.expires_s else 0.0,
        )

    def _save(self, record: UserRecord) -> UserRecord:
        with self._store.transaction(durable=True):
            if record.number is not None:
                self._store.unbind(record.origin, number=record.number, but=record.name)
            self._store.save_user(record)
        return record

    def change_user(self, name: str, change: UserChange) -> UserRecord:
        """Give a user another role or tenant, or bind its name to the number that it has now.

        Raises: UserNotFound, BadRequest.
        """
        record = self._store.get_user(name)
        if change.tenant is not None:
            identity.check_tenant_name(change.tenant)
        if change.rebind and record.origin is Origin.REMOTE:
            raise BadRequest(
                f"cannot rebind user `{name}`: it is known by its certificate, not by a number",
                hint="remove it and add it again",
            )
        if change.rebind:
            number = _gid(name) if record.origin is Origin.GROUP else _uid(name)
            record = replace(record, number=number)
        if change.by_groups:
            changed = _left_to_groups(record, change)
        else:
            changed = replace(
                record,
                tenant=change.tenant or record.tenant,
                role=change.role or record.role,
                standing=Standing.KNOWN if record.standing is Standing.SEEN else record.standing,
            )
        self._save(changed)
        self._on_change()
        return changed

    def remove_user(self, name: str) -> None:
        """Take a user's right away, at once, and its tokens.

        A Unix user's name stays taken, so that nobody gets its things with it.  Raises: UserNotFound.
        """
        record = self._store.get_user(name)
        with self._store.transaction(durable=True):
            if record.origin is Origin.UNIX:
                self._store.delete_tokens_of(name)
                self._store.save_user(replace(record, standing=Standing.REMOVED))
            else:
                self._store.delete_user(name)
        self._on_change()

    def list_tokens(self, grant: Grant) -> list[TokenRecord]:
        """Return the caller's tokens; an admin sees everybody's with tenant `*`."""
        whole = grant.principal.is_admin and scope(grant) is None
        return self._store.list_tokens_of(None if whole else grant.principal.name)

    def create_token(self, grant: Grant, wish: TokenWish) -> TokenMade:
        """Make a token for a program of the caller's.

        Raises: BadRequest, Denied for a scope that the caller does not have itself, ContainerNotFound, LimitRefused.
        """
        owner = grant.principal
        _check_scopes(grant, wish)
        tenant, container = grant.tenant, ""
        if wish.container:
            record = self._store.find_container(scope(grant), wish.container)
            tenant, container = record.tenant, record.id
        if len(wish.label) > MAX_LABEL or not wish.label.isprintable():
            raise BadRequest(f"cannot label a token: more than {MAX_LABEL} characters, or not printable ones")
        if len(self._store.list_tokens_of(owner.name)) >= MAX_TOKENS:
            raise LimitRefused(
                f"cannot make another token: you have {MAX_TOKENS}", hint="remove one: insula token rm"
            )
        now = time.time()
        token_id, secret, digest = identity.new_token()
        token = TokenRecord(
            id=token_id,
            owner=owner.name,
            uid=owner.uid,
            tenant=tenant,
            scopes=tuple(sorted(set(wish.scopes))),
            container=container,
            label=wish.label,
            created_at=now,
            expires_at=now + wish.expires_s,
        )
        self._store.save_api_token(token, digest=digest, now=now)
        return TokenMade(token=token, secret=secret)

    def delete_token(self, grant: Grant, token_id: str) -> None:
        """Revoke a token of the caller's; an admin any.

        Raises: TokenNotFound.
        """
        found = self._store.find_token(token_id)
        is_own = found is not None and found[0].owner == grant.principal.name
        if not is_own and not grant.principal.is_admin:
            raise TokenNotFound(f"cannot find token `{token_id}`", hint="insula token ls lists yours")
        self._store.delete_api_token(token_id)
        self._on_change()


def has_host(address: str) -> bool:
    """Tell whether an address to listen at names a host that others can reach it by."""
    host = split_address(address)[0]
    return host not in ("", "0.0.0.0", "::")


def _left_to_groups(record: UserRecord, change: UserChange) -> UserRecord:
    if record.origin is not Origin.UNIX or record.standing is Standing.REMOVED:
        raise BadRequest(f"cannot leave user `{record.name}` to its groups: it is no Unix user with a right")
    if change.tenant or change.role:
        raise BadRequest("cannot set a tenant or role and leave them to groups, too")
    return replace(record, standing=Standing.SEEN, tenant=record.name, role=Role.USER, expires_at=0.0)


def _check_scopes(grant: Grant, wish: TokenWish) -> None:
    if not wish.scopes:
        raise BadRequest("cannot make a token without a scope", hint="for example --scope read")
    for action in wish.scopes:
        if action not in SCOPES:
            words = ", ".join(sorted(SCOPES))
            raise BadRequest(f"cannot make a token for `{action.value}`", hint=f"one of {words}")
        if action not in OWN[grant.principal.role]:
            raise Denied(f"cannot make a token for `{action.value}`: you do not have that right yourself")
    if wish.container and set(wish.scopes) & {Action.CREATE, Action.OPERATE, Action.ADMIN}:
        raise BadRequest("cannot hold a token for `create`, `operate` or `admin` to one container")
    if grant.tenant == EVERY_TENANT and not grant.principal.is_admin:
        raise Denied("cannot make a token for all tenants: only an admin may")


def _uid(name: str) -> int:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        uid = int(name.removeprefix("uid")) if identity.is_uid_name(name) else -1
    if uid <= 0 or identity.user_name(uid, name) != name:
        raise BadRequest(
            f"cannot add user `{name[:80]}`: this host has no such account",
            hint="useradd, or uidN for a uid without one; `--remote` for somebody on another machine",
        )
    return uid


def _gid(name: str) -> int:
    try:
        return grp.getgrnam(name.removeprefix("@")).gr_gid
    except KeyError:
        raise BadRequest(
            f"cannot add group `{name[:80]}`: this host has no such group", hint="groupadd"
        ) from None


def _is_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return identity.is_uid_name(name)
    return True

# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection: what it has shown, and who that is at this moment.

Unix socket: the kernel says who connected (`kernel/unix_peer.py`: a snapshot of that moment).  TLS: the
certificate's fingerprint is the pin of a paired host or of a remote user.  A token (`Authorization: Bearer`) speaks for
its owner in place of the connection; a wrong one never falls back to it.  Containers' uids are refused in any case.
What all that means is decided anew at each request, by `tenant/identity.py`.  Source: unix(7), socket(7).
"""

import grp
import hashlib
import os
import pwd
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from insula.kernel import unix_peer
from insula.kernel.unix_peer import Process
from insula.model.errors import Denied, ProtocolError, Unauthenticated
from insula.model.grant import Action, Grant, Kind, Principal
from insula.model.record import HostRecord
from insula.model.users import Origin, TokenRecord, UserRecord
from insula.tenant import identity
from insula.tenant.check import check
from insula.tenant.identity import Account, Known
from insula.tenant.idmap import is_container_uid
from insula.tenant.subordinates import Lent

_BEARER = "bearer "

_LENT = Lent()

NOBODY = Principal(name="", kind=Kind.NOBODY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request, and the means to ask again later who that is then."""

    shown: "Shown"
    directory: "Directory"
    admins: frozenset[str]

    @classmethod
    def of(cls, request: web.Request, *, directory: "Directory", admins: frozenset[str]) -> "Caller":
        """Read what the connection of a request has shown.  Raises: ProtocolError, Unauthenticated."""
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        return cls(shown=shown(request.transport, request.headers), directory=directory, admins=admins)

    def now(self) -> Principal:
        """Return who that is at this moment.  Raises: Denied, Unauthenticated."""
        return identify(self.shown, directory=self.directory, admins=self.admins)

    def may(self, action: Action, principal: Principal | None = None, *, target_tenant: str = "") -> Grant:
        """Return the right to do something now.  Raises: as `now` and `check`."""
        return check(principal or self.now(), action, target_tenant=target_tenant)


class Directory(identity.Directory, Protocol):
    """Everybody whom this host knows."""

    def find_host_by_fingerprint(self, fingerprint: str) -> HostRecord | None: ...
    def find_user_by_fingerprint(self, fingerprint: str) -> UserRecord | None: ...
    def find_token(self, token_id: str) -> tuple[TokenRecord, bytes] | None: ...


class Extra(Protocol):
    """What of a transport is needed here."""

    def get_extra_info(self, name: str) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a connection has shown of itself.  It outlives the connection, so that streams can be judged again."""

    uid: int | None = None
    groups: frozenset[int] = frozenset()
    """Of the moment of connect."""
    fingerprint: str = ""
    """Of a client certificate."""
    token: str = ""
    """The text behind `Bearer`."""


def shown(transport: Extra, headers: Mapping[str, str]) -> Shown:
    """Read what the other end has shown.

    Raises: ProtocolError, Unauthenticated; Denied for a page of somebody else's in a browser.
    """
    _refuse_foreign_page(headers)
    token = _bearer(headers)
    tls = transport.get_extra_info("ssl_object")
    if isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
        certificate = tls.getpeercert(binary_form=True)
        return Shown(fingerprint=hashlib.sha256(certificate).hexdigest() if certificate else "", token=token)
    connection = transport.get_extra_info("socket")
    if not hasattr(connection, "getsockopt") or getattr(connection, "family", None) != socket.AF_UNIX:
        raise ProtocolError("cannot tell who calls: neither a unix socket nor TLS")
    peer = unix_peer.credentials(connection)
    return Shown(uid=peer.uid, groups=unix_peer.groups(connection) | {peer.gid}, token=token)


def caller_process(request: web.Request) -> Process | None:
    """Return the process that opened a request's connection; None: on another host, or the connection has gone."""
    connection = request.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX or connection.fileno() < 0:
        return None
    return unix_peer.process(connection)


def _refuse_foreign_page(headers: Mapping[str, str]) -> None:
    """A browser shows its user's certificate for whichever page asks it to: only our own pages may.

    Source: RFC 6454, 7; the header is set by browsers only, and pages cannot change it.
    """
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != headers.get("Host", ""):
        raise Denied("cannot serve a page of another site")


def _bearer(headers: Mapping[str, str]) -> str:
    value = headers.get("Authorization", "")
    if not value:
        return ""
    if not value.lower().startswith(_BEARER):
        raise Unauthenticated("cannot read the header `Authorization`: not `Bearer TOKEN`")
    return value[len(_BEARER) :].strip()


def token_id(headers: Mapping[str, str]) -> str:
    """Return the id of the token that a request shows, whether it is a right one or not; empty: none."""
    try:
        return identity.token_id_of(_bearer(headers))
    except Unauthenticated:
        return ""


def identify(found: Shown, *, directory: Directory, admins: frozenset[str]) -> Principal:
    """Return who that is now.

    Raises: Denied, Unauthenticated.
    """
    known = present(directory, admins=admins)
    if found.uid is not None and is_container_uid(found.uid):
        raise Denied(f"cannot serve uid `{found.uid}`: it belongs to a container", uid=found.uid)
    if found.token:
        return _of_token(found.token, directory=directory, known=known)
    if found.uid is not None:
        return identity.of_unix(account(found.uid, limit=found.groups), known)
    return _of_certificate(found.fingerprint, directory=directory, known=known)


def _of_certificate(fingerprint: str, *, directory: Directory, known: Known) -> Principal:
    if not fingerprint:
        return NOBODY
    host = directory.find_host_by_fingerprint(fingerprint)
    if host is not None:
        return Principal(name=host.name, kind=Kind.HOST)
    record = directory.find_user_by_fingerprint(fingerprint)
    return identity.of_remote(record, known) if record is not None else NOBODY


def _of_token(text: str, *, directory: Directory, known: Known) -> Principal:
    found = directory.find_token(identity.token_id_of(text))
    if found is None:
        raise identity.refused_token()
    record, digest = found
    identity.check_token(text, record, digest=digest, now=known.now)
    return identity.of_token(record, absent(record.owner, uid=record.uid, known=known))


def absent(name: str, *, uid: int | None, known: Known) -> Principal:
    """Return who a user is now that is not connected: the owner of a token, the maker of a container.

    uid: None for a remote one.  Raises: Denied, Unauthenticated.
    """
    found = identity.of_unix(account(uid), known) if uid is not None else _of_remote(name, known)
    if found.name != name:
        raise Unauthenticated(f"cannot tell who `{name}` is: there is no such user any more")
    return found


def _of_remote(name: str, known: Known) -> Principal:
    record = known.directory.find_user(name)
    if record is None or record.origin is not Origin.REMOTE:
        return NOBODY
    return identity.of_remote(record, known)


def account(uid: int, *, limit: frozenset[int] | None = None) -> Account:
    """Ask the user database about a uid.  limit: the groups that a connection has; those of both count."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid=uid, login=None, lent_to=_LENT.holder_of(uid))
    groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    counted = groups if limit is None else groups & limit
    return Account(uid=uid, login=entry.pw_name, gid=entry.pw_gid, groups=counted)


def counted_uid(uid: int) -> int:
    """Return the uid as which connections are counted: those that one line of /etc/subuid lends are one together."""
    line = _LENT.line_of(uid)
    return line.first if line is not None and account(uid).login is None else uid


def group_name(gid: int) -> str:
    """Return what the user database calls a group; empty: nothing."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def present(directory: identity.Directory, *, admins: frozenset[str]) -> Known:
    """Return what identities are decided by at this moment."""
    return Known(directory=directory, admins=admins, now=time.time(), group_name=group_name)

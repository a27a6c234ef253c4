# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection.

Unix socket: the kernel says so (SO_PEERCRED: the uid at the time of connect).  TLS: the certificate's fingerprint is
the pin of a paired host, or it is nobody, who may only pair.  Source: unix(7).
"""

import hashlib
import pwd
import re
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol

from insula.model.errors import Denied, ProtocolError
from insula.model.grant import Kind, Principal, Role
from insula.model.record import HostRecord
from insula.tenant.idmap import is_container_uid

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_TENANT_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""Names that are safe as a folder and in a message; who is called otherwise is `uid<N>`."""
_UID_NAME = re.compile(r"uid[0-9]+")
"""Belongs to that uid: a user who is called so and has another is named by his own."""

NOBODY = Principal(name="", kind=Kind.NOBODY)

FindHost = Callable[[str], HostRecord | None]


class Extra(Protocol):
    """What of a transport is needed here."""

    def get_extra_info(self, name: str) -> object: ...


def tenant_name(uid: int) -> str:
    """Return the name of a user, as a tenant."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
    return name if _TENANT_NAME.fullmatch(name) and not _UID_NAME.fullmatch(name) else f"uid{uid}"


def user(uid: int, *, admins: frozenset[str] = frozenset()) -> Principal:
    """Return the principal of a uid.

    Raises: Denied for the uids of programs in containers.
    """
    if is_container_uid(uid):
        raise Denied(f"cannot serve uid `{uid}`: it belongs to a container", uid=uid)
    name = tenant_name(uid)
    role = Role.ADMIN if uid == 0 or name in admins else Role.USER
    return Principal(name=name, uid=uid, role=role)


def identify(transport: Extra, *, find_host: FindHost, admins: frozenset[str]) -> Principal:
    """Return who is at the other end.

    Raises: Denied, ProtocolError.
    """
    tls = transport.get_extra_info("ssl_object")
    if isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
        certificate = tls.getpeercert(binary_form=True)
        host = find_host(hashlib.sha256(certificate).hexdigest()) if certificate else None
        return Principal(name=host.name, kind=Kind.HOST) if host else NOBODY
    connection = transport.get_extra_info("socket")
    if not hasattr(connection, "getsockopt") or getattr(connection, "family", None) != socket.AF_UNIX:
        raise ProtocolError("cannot tell who calls: neither a unix socket nor TLS")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return user(uid & 0xFFFFFFFF, admins=admins)

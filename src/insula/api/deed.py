# SPDX-License-Identifier: Apache-2.0
"""One request, as its line in the audit log will tell it: who asks is known at once, the rest when it comes out.

What a refused caller showed stands there, too: the uid of its connection, the id of its token.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from insula.api import auth
from insula.kernel import unix_peer
from insula.model.errors import InsulaError
from insula.model.grant import EVERY_TENANT, Action, Grant, Principal
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import UNCHANGED, Entry

LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Deed:
    """What is known of it so far."""

    principal: Principal
    source: str
    """The address that asks: asked for at once, because a connection that has ended tells none."""
    tenant: str = ""
    """Whose things it is about: the caller's own, until another's are known to be it."""
    asked_tenant: str = ""
    """The tenant that the caller named, if it was refused."""
    is_granted: bool = False
    made: str = ""
    """Id of what came to be; its name where it has no other."""
    made_name: str = ""
    success: str = "ok"
    """What the line says if nothing fails."""
    result: str = "internal"

    def by(self, principal: Principal, *, asked_tenant: str) -> None:
        """Note who asks, and what tenant for, before it is decided whether it may."""
        self.principal, self.tenant, self.asked_tenant = principal, principal.tenant, asked_tenant

    def may(self, grant: Grant) -> None:
        """Note what the caller may."""
        self.tenant, self.asked_tenant = grant.tenant, ""
        self.is_granted = True

    def about(self, tenant: str) -> None:
        """Note whose thing it is, where the caller has asked among all tenants'."""
        if self.tenant == EVERY_TENANT:
            self.tenant = tenant

    def creates(self, made: str, *, name: str = "") -> None:
        """Note what came to be."""
        self.made, self.made_name = made, name

    def finds_it_so(self) -> None:
        """Note that nothing had to be changed."""
        self.success = UNCHANGED


@contextmanager
def written_down(request: web.Request, action: Action, *, audit: Audit) -> Iterator[Deed]:
    """Write a request's line when the block has ended, however it did."""
    begun = time.monotonic()
    process = auth.caller_process(request)
    deed = Deed(principal=_unknown(request), source=_source(request))
    try:
        yield deed
        deed.result = deed.success
    except InsulaError as error:
        deed.result = error.code
        raise
    except asyncio.CancelledError:
        deed.result = "gone"
        raise
    finally:
        entry = replace(_entry(request, action, deed), seconds=time.monotonic() - begun)
        if process is not None:
            entry = replace(entry, pid=process.pid, began=process.began)
        _write(audit, entry)


def counted(request: web.Request, result: str, *, audit: Audit) -> None:
    """Have a request counted that nobody looks at: it came too soon, or there is no such path."""
    audit.count(
        Entry(
            principal=_unknown(request),
            action=None,
            method=request.method,
            path=request.path,
            is_granted=False,
            result=result,
            source=_source(request),
        )
    )


def _entry(request: web.Request, action: Action, deed: Deed) -> Entry:
    return Entry(
        principal=deed.principal,
        action=action,
        method=request.method,
        path=request.path,
        tenant=deed.tenant,
        asked_tenant=deed.asked_tenant,
        is_granted=deed.is_granted,
        made=deed.made,
        made_name=deed.made_name,
        result=deed.result,
        source=deed.source,
    )


def _unknown(request: web.Request) -> Principal:
    """Return who asks before that has been looked at: nobody, with the uid that the kernel tells and the token's id."""
    connection = request.get_extra_info("socket")
    is_here = connection is not None and connection.family == socket.AF_UNIX and connection.fileno() >= 0
    uid = unix_peer.credentials(connection).uid if is_here else None
    return replace(auth.NOBODY, uid=uid, token=auth.token_id(request.headers))


def _source(request: web.Request) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else "unix"


def _write(audit: Audit, entry: Entry) -> None:
    try:
        audit.record(entry)
    except OSError as error:
        # What changes something was refused before (`require_room`); what only looks is served all the same.
        LOG.error("the audit log cannot be written", extra={"fields": {"reason": str(error)}})

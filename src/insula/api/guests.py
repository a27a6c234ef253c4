# SPDX-License-Identifier: Apache-2.0
"""Connections over TLS that have been served as somebody: so many of each user, so many in all.

    a connection ─► a stranger, whom the door bounds (`daemon/door.py`) ─ its first request of somebody ─► a guest, counted here

A certificate alone makes no guest: it may belong to a host that is not paired any more; a token is shown by the request
only.  Administrators and paired hosts have no bound, as root has none at the unix socket.  Everything here belongs to the
loop's thread.
"""

import asyncio
from weakref import WeakSet

from insula.model.errors import TooManyRequests
from insula.model.grant import Kind, Principal

MAX_OF_ONE = 128
"""Of one user, as of one uid at the unix sockets."""
MAX_GUESTS = 256
"""Of all users together: TLS keeps 280 KiB for each."""

_Transports = WeakSet[asyncio.Transport]


class Guests:
    """Who is in."""

    def __init__(self) -> None:
        self._all: _Transports = WeakSet()
        self._of: dict[tuple[Kind, str], _Transports] = {}
        """Those of users, who have a bound."""

    def is_guest(self, transport: asyncio.Transport) -> bool:
        """Tell whether a connection has been served as somebody."""
        return transport in self._all

    def let_in(self, transport: asyncio.Transport | None, principal: Principal) -> None:
        """Count a connection over TLS at its first request; any other is none of ours.  Raises: TooManyRequests."""
        if transport is None or transport in self._all or principal.kind is Kind.NOBODY:
            return
        if transport.get_extra_info("ssl_object") is None:
            return
        if not (principal.is_admin or principal.is_peer):
            self._take_place(transport, principal)
        self._all.add(transport)

    def _take_place(self, transport: asyncio.Transport, principal: Principal) -> None:
        self._of = {who: still for who, each in self._of.items() if (still := _open(each))}
        own = self._of.get((principal.kind, principal.name), WeakSet())
        _refuse_more(len(own), limit=MAX_OF_ONE, whose="of one user")
        _refuse_more(sum(map(len, self._of.values())), limit=MAX_GUESTS, whose="from other hosts")
        own.add(transport)
        self._of[principal.kind, principal.name] = own


def _open(transports: _Transports) -> _Transports:
    return WeakSet(each for each in transports if not each.is_closing())


def _refuse_more(present: int, *, limit: int, whose: str) -> None:
    if present >= limit:
        raise TooManyRequests(
            f"cannot take so many connections {whose}", hint=f"close those that are idle (at most {limit})"
        )

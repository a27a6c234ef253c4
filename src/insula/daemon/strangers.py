# SPDX-License-Identifier: Apache-2.0
"""Connections over TLS of which nobody knows yet whose they are: few of each address, few in all, and not for long.

    handshake ─► HTTP ─► a request that is served as somebody: a guest (`api/guests.py`), forgotten here

Each costs a descriptor and 280 KiB, and anybody who reaches the port may make some.  Who comes when there is no place left
takes the place of the oldest: of the same address, or of the address that has most.  So a flood pushes out its own, and
somebody else has as long as the flood takes to fill half of the places.  Each handshake costs the loop a millisecond, too:
who begins many is not let in for a while.  Everything here belongs to the loop's thread.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable

from insula.tenant.pace import Bucket

STRANGER_S = 10.0
"""From the first byte to a request that is served as somebody."""
MAX_STRANGERS = 64
MAX_OF_ADDRESS = 32
CONNECTS_PER_S = 100
"""From one address; two seconds' worth may come at once."""
MAX_SITES = 1024
"""Whose pace is kept; who has more addresses than that is not held by it."""
_IPV6_NEIGHBOURS = 64
"""Bits of an IPv6 address that are given to one site: what follows is chosen by whoever has them."""


def site_of(connection: socket.socket) -> str:
    """Return what the connections of one client have in common; empty: it has gone."""
    try:
        address = ipaddress.ip_address(str(connection.getpeername()[0]).partition("%")[0])
    except OSError:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_NEIGHBOURS), strict=False))


def crowded(sites: Counter[str], came: str, *, of_one: int, of_all: int) -> str | None:
    """Return the site whose oldest connection gives its place to one more of `came`; None: there is a place left."""
    if sites[came] >= of_one:
        return came
    return max(sites, key=sites.__getitem__) if sites.total() >= of_all else None


class Stranger:
    """One connection.  `transport` is there once it has shaken hands."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.site = site_of(connection)
        self.transport: asyncio.Transport | None = None
        self.is_gone = False

    def cut(self) -> None:
        """End the connection at whatever point it is."""
        self.is_gone = True
        if self.transport is not None:
            # Of one that was closed twice Python before 3.11.3 has let go: abort() fails.
            if not self.transport.is_closing():
                self.transport.abort()
            return
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # its handshake fails, and closes it
        except OSError:  # it has ended
            return


class Strangers:
    """Those that are here."""

    def __init__(self, *, is_guest: Callable[[asyncio.Transport], bool]) -> None:
        self._is_guest = is_guest
        self._here: dict[Stranger, asyncio.TimerHandle] = {}
        """The oldest first; each with the timer that ends it."""
        self._paces: dict[str, Bucket] = {}

    @property
    def sites(self) -> int:
        """How many sites' pace is kept."""
        return len(self._paces)

    def may_come(self, connection: socket.socket) -> bool:
        """Tell whether a connection is not one too many within so short a time, and count it."""
        site, now = site_of(connection), asyncio.get_running_loop().time()
        if site not in self._paces and len(self._paces) >= MAX_SITES:
            self._paces.clear()
        bucket = self._paces.setdefault(site, Bucket.full(CONNECTS_PER_S, now=now))
        return bucket.try_take(CONNECTS_PER_S, now=now)

    def let_in(self, connection: socket.socket) -> Stranger:
        """Give a connection a place, another's if there is none left."""
        self._forget_others()
        came = Stranger(connection)
        sites = Counter(each.site for each in self._here)
        site = crowded(sites, came.site, of_one=MAX_OF_ADDRESS, of_all=MAX_STRANGERS)
        if site is not None:
            self._cut(next(each for each in self._here if each.site == site))
        loop = asyncio.get_running_loop()
        self._here[came] = loop.call_later(STRANGER_S, self._end_of_time, came)
        return came

    def forget(self, stranger: Stranger) -> None:
        """Give a place back: the connection has ended, or is a guest's."""
        timer = self._here.pop(stranger, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cut all."""
        for each in list(self._here):
            self._cut(each)

    def _forget_others(self) -> None:
        for each in [one for one in self._here if self._is_other(one)]:
            self.forget(each)

    def _is_other(self, stranger: Stranger) -> bool:
        transport = stranger.transport
        return transport is not None and (transport.is_closing() or self._is_guest(transport))

    def _end_of_time(self, stranger: Stranger) -> None:
        if self._is_other(stranger):
            self.forget(stranger)
        else:
            self._cut(stranger)

    def _cut(self, stranger: Stranger) -> None:
        self.forget(stranger)
        stranger.cut()

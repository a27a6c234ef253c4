# SPDX-License-Identifier: Apache-2.0
"""The names of running containers, network by network: a table that threads write and the name server reads.

Out of scope: DNS itself (`names.py`).  Names are compared in lower case.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A network whose gateway answers questions about names."""

    gateway: str
    subnet: IPv4Network
    subnet6: IPv6Network | None = None
    is_internal: bool = False
    """Names of the outside are not asked for: they would be a way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    network: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    names: tuple[str, ...] = field(default=())


class Zone:
    """Safe to use from several threads: every change replaces a whole mapping."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: Mapping[str, Served] = {}
        self._containers: Mapping[str, _Names] = {}
        self._listeners: list[Callable[[], None]] = []

    @property
    def served(self) -> Mapping[str, Served]:
        """Networks by id."""
        return self._served

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener`, in the changing thread, whenever networks come or go."""
        self._listeners.append(listener)

    def serve(self, network: str, served: Served) -> None:
        with self._lock:
            if self._served.get(network) == served:
                return
            self._served = {**self._served, network: served}
        self._tell()

    def end(self, network: str) -> None:
        with self._lock:
            self._served = {key: value for key, value in self._served.items() if key != network}
        self._tell()

    def set_names(
        self, container: str, *, network: str, addresses: tuple[str, ...], names: tuple[str, ...]
    ) -> None:
        """Have a container found by these names, with one address of each kind; earlier ones of it are forgotten."""
        lowered = tuple(dict.fromkeys(name.lower().rstrip(".") for name in names if name))
        found = tuple(ip_address(each) for each in addresses)
        entry = _Names(network=network, addresses=found, names=lowered)
        with self._lock:
            self._containers = {**self._containers, container: entry}

    def forget(self, container: str) -> None:
        with self._lock:
            self._containers = {key: value for key, value in self._containers.items() if key != container}

    def addresses_of(self, network: str, name: str) -> tuple[IPv4Address | IPv6Address, ...]:
        """Return the addresses of a name, in a stable order; none if nobody has it."""
        wanted = name.lower()
        found = {
            address
            for each in self._containers.values()
            if each.network == network and wanted in each.names
            for address in each.addresses
        }
        return tuple(sorted(found, key=lambda address: (address.version, int(address))))

    def name_of(self, network: str, address: IPv4Address | IPv6Address) -> str | None:
        """Return the first name of whoever has an address."""
        for each in self._containers.values():
            if each.network == network and address in each.addresses and each.names:
                return each.names[0]
        return None

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

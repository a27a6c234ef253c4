# SPDX-License-Identifier: Apache-2.0
"""Hold a wish against what the one who asks may ask for.  After the last merge, on every way by which a wish comes in.

The table of restricted fields: a field of `Spec` that a policy restricts has its check here and nowhere else, and every
way (create, start, restart, restore, arrival from another host) calls `check_permitted`.
"""

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_network

from insula.model.errors import NotPermitted
from insula.model.permit import FIRST_HIGH_PORT, HOME, Permit
from insula.model.spec import MountKind, MountWish, PortMapping, Spec
from insula.network.ipv6 import UNIQUE_LOCAL
from insula.runtime.plan import capabilities_of

__all__ = ["ceiling_of", "check_permitted", "check_ports", "check_subnet", "check_uplink"]

_NEVER = ("/proc", "/sys", "/dev")
"""Below these nobody but an admin mounts anything, whatever the policy names."""


def check_permitted(spec: Spec, permit: Permit) -> None:
    """Raises: NotPermitted naming the field, the value and who could grant it."""
    if permit.is_everything:
        return
    refused = set(capabilities_of(spec)) - permit.capabilities
    if refused:
        raise NotPermitted(
            f"cannot add capability `{min(refused)}`: the policy does not grant it",
            hint="an admin may, and can grant it: `capabilities` in the policy",
        )
    check_ports(spec.ports, permit)
    for device in spec.devices:
        if not any(fnmatchcase(device.source, granted) for granted in permit.devices):
            raise NotPermitted(
                f"cannot use device `{device.source}`: the policy does not grant it",
                hint="an admin may, and can grant it: `devices` in the policy",
            )
    for mount in spec.mounts:
        if mount.kind is MountKind.BIND:
            ceiling_of(mount, permit)


def check_ports(ports: Iterable[PortMapping], permit: Permit) -> None:
    """Raises: NotPermitted for a port of the host that is not granted."""
    if not permit.is_everything:
        for port in ports:
            _check_port(port, permit)


def check_uplink(interface: str, permit: Permit) -> None:
    """Raises: NotPermitted for an interface of the host that is not granted."""
    if interface and not permit.is_everything and interface not in permit.uplinks:
        raise NotPermitted(
            f"cannot use interface `{interface}`: the policy does not grant it",
            hint="an admin may, and can grant it: `uplinks` in the policy",
        )


def check_subnet(subnet: str, permit: Permit, *, pool: IPv4Network) -> None:
    """Hold the subnet of a wished network against the host's pool and what is granted.

    The host sends to a network's bridge whatever it or a container says to an address of its subnet: who may choose any
    subnet gets what is meant for others.  What is no subnet is refused by who reads it.    Raises: NotPermitted.
    """
    if not subnet or permit.is_everything:
        return
    try:
        wished = ip_network(subnet)
    except ValueError:
        return
    granted = (pool, UNIQUE_LOCAL, *(ip_network(each) for each in permit.subnets))
    if not any(_lies_in(wished, each) for each in granted):
        raise NotPermitted(
            f"cannot use subnet `{subnet}`: it is not in this host's pool {pool}, and the policy does not grant it",
            hint="leave --subnet out to have a free one chosen; an admin can grant it: `subnets` in the policy",
        )


def _lies_in(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _check_port(port: PortMapping, permit: Permit) -> None:
    wished = range(port.host_port, port.host_port + port.count) if port.host_port else range(0)
    for number in wished:
        if number < FIRST_HIGH_PORT and number not in permit.low_ports:
            raise NotPermitted(
                f"cannot publish port {number}: it is below {FIRST_HIGH_PORT}, and the policy does not grant it",
                hint="publish a higher one; an admin can grant it: `low_ports` in the policy",
            )


def ceiling_of(mount: MountWish, permit: Permit) -> tuple[str, str]:
    """Return the granted folder that a bind mount's source lies below, and the path from there.

    By its words only: that no link leads out again is seen to when it is opened (`binds.py`).
    Raises: NotPermitted.
    """
    source = os.path.normpath(mount.source)
    user = permit.opens_as
    if user is not None and source.startswith("/") and ".." not in mount.source.split("/"):
        for folder in permit.binds:
            ceiling = os.path.normpath(user.home if folder == HOME else folder)
            if ceiling.startswith("/") and _is_below(source, ceiling) and not _is_never(source, ceiling):
                return ceiling, os.path.relpath(source, ceiling)
    raise NotPermitted(
        f"cannot mount host folder `{mount.source}`: the policy does not grant it",
        hint="use a volume: -v NAME:PATH; an admin can grant folders: `binds` in the policy",
    )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_never(source: str, ceiling: str) -> bool:
    # A home of `/` is no home: accounts of services have it.
    return (ceiling == "/" and source == "/") or any(_is_below(source, each) for each in _NEVER)

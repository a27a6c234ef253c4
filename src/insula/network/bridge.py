# SPDX-License-Identifier: Apache-2.0
"""A network's bridge on this host: made, looked after, removed.

A bridge of a NAT or internal network carries the gateway's address.  A bridge with an uplink is a mere switch between
containers and the LAN: the gateway is a router out there, and the bridge gets no address (moving the host's own address
to it is the administrator's business).  Out of scope: who may talk to whom (`firewall.py`).
"""

import errno
import hashlib
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from insula.kernel.netlink import Link, Route
from insula.model.errors import Conflict, InvalidSpec
from insula.model.record import NetworkRecord
from insula.network import ipv6, pool

_SYSCTL = Path("/proc/sys/net/ipv4")
_SYSCTL6 = Path("/proc/sys/net/ipv6/conf")


def bridge_name(network_id: str) -> str:
    """Return the name of a network's bridge, `in-` and 8 hexadecimal digits."""
    return "in-" + hashlib.sha256(network_id.encode()).hexdigest()[:8]


def interface_prefix(host_name: str) -> str:
    """Return what the names of all containers' interfaces on this host begin with, and nobody else's."""
    return "iv" + hashlib.sha256(host_name.encode()).hexdigest()[:4]


def interface_name(host_name: str, container_id: str) -> str:
    """Return the name of the host's end of a container's pair, 15 characters."""
    return interface_prefix(host_name) + hashlib.sha256(container_id.encode()).hexdigest()[:9]


def check_uplink(name: str) -> None:
    """Refuse an uplink that cannot become a port.  Raises: InvalidSpec, Conflict."""
    with Route() as route:
        links = {link.name: link for link in route.links()}
        link = links.get(name)
        if link is None:
            known = ", ".join(sorted(each for each in links if each != "lo"))
            raise InvalidSpec(
                f"cannot use uplink `{name}`: this host has no such interface", hint=f"it has {known}"
            )
        if link.kind == "bridge" or name == "lo":
            raise InvalidSpec(f"cannot use uplink `{name}`: it cannot be a port of a bridge")
        if link.master:
            raise Conflict(f"cannot use uplink `{name}`: it is a port of another bridge already")


def used_subnets() -> list[IPv4Network]:
    """List what this host's addresses and routes cover already, without its default route."""
    with Route() as route:
        found = [
            IPv4Network((each.address, each.prefix_length), strict=False)
            for each in route.addresses()
            if ":" not in each.address
        ]
        found += [
            IPv4Network(each.destination)
            for each in route.routes()
            if ":" not in each.destination and not each.destination.endswith("/0")
        ]
    return found


def used_subnets6() -> list[IPv6Network]:
    """List what this host's addresses and routes cover already, without its default route and what is link-local."""
    with Route() as route:
        found = [
            IPv6Network((each.address, each.prefix_length), strict=False)
            for each in route.addresses()
            if ":" in each.address
        ]
        found += [IPv6Network(each.destination) for each in route.routes() if ":" in each.destination]
    return [each for each in found if each.prefixlen and not each.is_link_local and not each.is_multicast]


def ensure(network: NetworkRecord) -> None:
    """Have the network's bridge: made, addressed, up, the uplink a port of it.  What is there already stays.

    Without IPv6 on this host it is an IPv4 one, whatever the record says.
    """
    has_ipv6 = bool(network.subnet6) and ipv6.is_enabled()
    with Route() as route:
        links = {link.name: link for link in route.links()}
        bridge = links.get(network.bridge)
        if bridge is None:
            mac = pool.mac_of_bridge(network.id)
            _unless_exists(lambda: route.create_bridge(network.bridge, mac=mac))
        elif not bridge.up:
            route.set_up(network.bridge)
        if network.uplink:
            _ensure_uplink(route, network, link=links.get(network.uplink))
        else:
            prefix = IPv4Network(network.subnet).prefixlen
            _unless_exists(lambda: route.add_address(network.bridge, network.gateway, prefix))
            if has_ipv6:
                prefix6 = IPv6Network(network.subnet6).prefixlen
                _unless_exists(lambda: route.add_address(network.bridge, network.gateway6, prefix6))
    if not network.uplink:
        allow_forwarding()
        if has_ipv6:
            _forward_ipv6()


def allow_forwarding() -> None:
    """Have this host forward IPv4."""
    _write_if_other(_SYSCTL / "ip_forward", "1")


def allow_local_ports(bridge: str) -> None:
    """Let this host's own 127.0.0.1:PORT lead to a container of this bridge.

    Needs route_localnet, which alone would show the host's loopback services to containers: the firewall drops
    whatever comes from outside with a loopback address (`firewall.py`, chain `loopback`), and stands before this.
    """
    _write_if_other(_SYSCTL / "conf" / bridge / "route_localnet", "1")


def allow_hairpin(interface: str) -> None:
    """Let a container reach itself through its own published port, by a frame that leaves where it came in.

    Needed only where bridged frames pass the inet hooks (br_netfilter).  That the interface is not made yet is no error.
    """
    with Route() as route:
        try:
            route.set_port(interface, hairpin=True)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def remove(network: NetworkRecord) -> None:
    """Remove the bridge; the uplink stays, as an interface of its own.  That there is none is no error."""
    with Route() as route:
        try:
            route.delete(network.bridge)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def _ensure_uplink(route: Route, network: NetworkRecord, *, link: Link | None) -> None:
    if link is None:
        raise Conflict(
            f"cannot bring up network `{network.name}`: this host has no interface `{network.uplink}`",
            hint="plug it in again, or remove the network",
        )
    if link.master != route.index_of(network.bridge):
        route.set_master(network.uplink, network.bridge)
    route.set_up(network.uplink)


def _forward_ipv6() -> None:
    """Have this host forward IPv6.  A router hears no other router's advertisements unless told so: what this host has
    learned its own default route from stays heard (ip-sysctl.rst, accept_ra)."""
    if (_SYSCTL6 / "all/forwarding").read_text(encoding="ascii").strip() == "1":
        return
    for each in _SYSCTL6.iterdir():
        hears = each / "accept_ra"
        if hears.read_text(encoding="ascii").strip() == "1":
            hears.write_text("2", encoding="ascii")
    _write_if_other(_SYSCTL6 / "all/forwarding", "1")


def _unless_exists(step: Callable[[], None]) -> None:
    try:
        step()
    except FileExistsError:
        pass


def _write_if_other(path: Path, value: str) -> None:
    if path.read_text(encoding="ascii").strip() != value:
        path.write_text(value, encoding="ascii")

# SPDX-License-Identifier: Apache-2.0
"""A wish for a network becomes its record: subnets and gateways chosen or checked.  Nothing is made."""

import secrets
import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from insula.model.errors import InvalidSpec, Unsupported
from insula.model.labels import check_labels
from insula.model.record import NetworkRecord
from insula.model.spec import Ipv6, NetworkWish
from insula.network import bridge, ipv6, pool


def plan_network(
    tenant: str,
    wish: NetworkWish,
    *,
    others: Sequence[NetworkRecord],
    from_pool: IPv4Network,
    has_ipv6: bool,
) -> NetworkRecord:
    """Return the record of a wished network.

    others: this host's networks.  has_ipv6: of this host.
    Raises: InvalidSpec, SubnetOverlaps, AddressPoolExhausted, Conflict; Unsupported for IPv6 that cannot be had.
    """
    check_labels(wish.labels)
    subnet = _choose_subnet(tenant, wish, others=others, from_pool=from_pool)
    subnet6 = _choose_subnet6(tenant, wish, others=others, subnet=subnet, has_ipv6=has_ipv6)
    gateway6 = ipv6.choose_gateway(subnet6, wished=wish.gateway6, containers=subnet) if subnet6 else ""
    network_id = secrets.token_hex(16)
    return NetworkRecord(
        id=network_id,
        name=wish.name,
        tenant=tenant,
        subnet=str(subnet),
        gateway=str(pool.choose_gateway(subnet, wished=wish.gateway)),
        bridge=bridge.bridge_name(network_id),
        subnet6=str(subnet6 or ""),
        gateway6=str(gateway6),
        uplink=wish.uplink,
        internal=wish.internal,
        labels=wish.labels,
        created_at=time.time(),
    )


def _choose_subnet(
    tenant: str, wish: NetworkWish, *, others: Sequence[NetworkRecord], from_pool: IPv4Network
) -> IPv4Network:
    used = [IPv4Network(each.subnet) for each in others]
    if wish.uplink:
        bridge.check_uplink(wish.uplink)
        if not wish.subnet:
            raise InvalidSpec(
                f"cannot create network `{wish.name}`: a network with an uplink needs a subnet",
                hint="name the LAN's --subnet and its router as --gateway",
            )
    else:
        used += bridge.used_subnets()
    if not wish.subnet:
        return pool.choose_subnet(from_pool, used=used, seed=f"{tenant}\0{wish.name}")
    subnet = pool.parse_subnet(wish.subnet)
    pool.check_subnet(subnet, used=used)
    return subnet


def _choose_subnet6(
    tenant: str, wish: NetworkWish, *, others: Sequence[NetworkRecord], subnet: IPv4Network, has_ipv6: bool
) -> IPv6Network | None:
    """Return the prefix of a network; None: it is IPv4 only."""
    is_wished = wish.ipv6 is Ipv6.ON or bool(wish.subnet6)
    if wish.ipv6 is Ipv6.OFF or not (is_wished or (has_ipv6 and not wish.uplink)):
        return None
    if not has_ipv6:
        raise Unsupported(
            f"cannot create network `{wish.name}` with IPv6: this host has none, or its nft cannot wall it",
            hint="see `insula doctor`; without --ipv6 the network is made for IPv4",
        )
    if wish.uplink and not (wish.subnet6 and wish.gateway6):
        raise InvalidSpec(
            f"cannot create network `{wish.name}`: with an uplink IPv6 needs its subnet and router, too",
            hint="name the LAN's --subnet and --gateway for IPv4 and once more for IPv6",
        )
    used = [IPv6Network(each.subnet6) for each in others if each.subnet6]
    used += [] if wish.uplink else bridge.used_subnets6()
    if not wish.subnet6:
        return ipv6.choose_subnet(tenant, wish.name, subnet=subnet, used=used)
    found = ipv6.parse_subnet(wish.subnet6)
    pool.check_subnet(found, used=used)
    return found

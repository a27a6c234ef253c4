# SPDX-License-Identifier: Apache-2.0
"""The networks of a host, as the runtime sees them: created, leased from, attached to, published on, removed.

    create → lease → activate → publish  …  unpublish → deactivate → release → remove

A lease lives as long as its container (its address comes back after each stop); activation and publication as long as
it runs.  The pair of interfaces itself is made by the spawner (`kernel.netlink.Route.create_veth`) between `activate`
and the program's start.  Safe to use from several threads.  Out of scope: storage (`NetworkStore` is a protocol).
"""

import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Protocol

from msgspec.structs import replace

from insula.kernel import nft
from insula.kernel.netlink import Route
from insula.kernel.nft import Element
from insula.model.errors import (
    Conflict,
    Denied,
    InUse,
    InvalidSpec,
    NameTaken,
    NetworkNotFound,
    PortInUse,
)
from insula.model.quota import Allowance, Resource, Unlimited
from insula.model.record import Attachment, Lease, NetworkRecord
from insula.model.spec import NetworkWish, PortMapping
from insula.network import bridge, firewall, ipv6, pool, ports
from insula.network.limit import Limit
from insula.network.relay import Gone, Relays, check_lan_ports, relays_into_lan, without_taken
from insula.network.wish import plan_network
from insula.network.zone import Served, Zone

DEFAULT_NETWORK = "default"
RESERVED_NAMES = frozenset({"none", "host"})
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


LEAVING_SECONDS = 5.0
"""What the kernel may take to let go of a port; it needs 20 ms."""


class NetworkStore(Protocol):
    """What has to outlive the daemon.  Each call is durable when it returns; `save` inserts or replaces."""

    def list_networks(self) -> Iterable[NetworkRecord]: ...
    def save_network(self, network: NetworkRecord, /) -> None: ...
    def delete_network(self, network_id: str, /) -> None: ...
    def list_leases(self, network_id: str, /) -> Iterable[Lease]: ...
    def save_lease(self, lease: Lease, /) -> None: ...
    def delete_lease(self, network_id: str, address: str, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A container that runs while the daemon starts."""

    container_id: str
    attachment: Attachment
    ports: tuple[PortMapping, ...] = ()
    names: tuple[str, ...] = ()
    limit: Limit | None = None


@dataclass(slots=True, kw_only=True)
class _Active:
    attachment: Attachment
    limit: Limit | None = None
    name: str = ""
    ports: tuple[PortMapping, ...] = field(default=())
    is_in_lan: bool = False
    """Its network has an uplink."""

    @property
    def relays(self) -> tuple[firewall.Relay, ...]:
        """How its ports are published if it stands in a LAN."""
        return relays_into_lan(self.attachment, self.ports) if self.is_in_lan else ()


class Networks:
    """All networks of one daemon.

    host_name: makes the names of its tables and interfaces its own.  pool_subnet: where subnets are chosen from.
    """

    def __init__(
        self,
        host_name: str,
        store: NetworkStore,
        *,
        pool_subnet: IPv4Network = pool.DEFAULT_POOL,
        zone: Zone | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.zone = zone or Zone()
        self._allowance = allowance or Unlimited()
        self._host_name = host_name
        self._store = store
        self.pool = pool_subnet
        self._lock = threading.RLock()
        self._active: dict[str, _Active] = {}
        self._leaving: list[_Active] = []
        """Deactivated, but their elements may still be in the kernel: who wants the same ports waits."""
        self._left = threading.Condition(self._lock)
        self._last: dict[str, IPv4Address] = {}
        self._has_ipv6: bool | None = None
        self._relays = Relays(host_name)

    @property
    def has_ipv6(self) -> bool:
        """Whether this host has IPv6 and can wall it; asked once."""
        if self._has_ipv6 is None:
            self._has_ipv6 = firewall.can_filter_ipv6()
        return self._has_ipv6

    # -- networks ------------------------------------------------------------------------------------------------------

    def create(self, tenant: str, wish: NetworkWish, *, is_admin: bool = False) -> NetworkRecord:
        """Create a network and bring it up.

        Raises: InvalidSpec, NameTaken, Denied (an uplink is an admin's), QuotaExceeded, SubnetOverlaps,
        AddressPoolExhausted, Conflict.
        """
        if not _NAME.fullmatch(wish.name) or wish.name in RESERVED_NAMES:
            raise InvalidSpec(
                f"cannot create network `{wish.name}`: not a name",
                hint="letters, digits, `_`, `.` and `-`, at most 63, not `none` or `host`",
            )
        if wish.uplink and not is_admin:
            raise Denied(f"cannot create network `{wish.name}`: an uplink is for administrators")
        with self._lock:
            if self._find(tenant, wish.name):
                raise NameTaken(f"cannot create network `{wish.name}`: you have one of that name")
            self._allowance.check(tenant, Resource.NETWORKS, used=len(self.list(tenant)))
            others = tuple(self._store.list_networks())
            network = plan_network(tenant, wish, others=others, from_pool=self.pool, has_ipv6=self.has_ipv6)
            self._store.save_network(network)
            try:
                bridge.ensure(network)
                self._apply_rules()
            except (OSError, Conflict):
                self._discard(network)
                raise
            self._serve(network)
            return network

    def default_for(self, tenant: str) -> NetworkRecord:
        """Return the tenant's `default` network; the first time it is created."""
        with self._lock:
            return self._find(tenant, DEFAULT_NETWORK) or self.create(
                tenant, NetworkWish(name=DEFAULT_NETWORK)
            )

    def get(self, tenant: str, name: str) -> NetworkRecord:
        """Return a tenant's network.  Raises: NetworkNotFound."""
        if name == DEFAULT_NETWORK:
            return self.default_for(tenant)
        network = self._find(tenant, name)
        if network is None:
            known = ", ".join(each.name for each in self.list(tenant)) or "none"
            raise NetworkNotFound(
                f"cannot find network `{name}`: you have no such network", hint=f"there are: {known}"
            )
        return network

    def list(self, tenant: str | None) -> tuple[NetworkRecord, ...]:
        """List a tenant's networks by name; None: everybody's."""
        found = [each for each in self._store.list_networks() if tenant is None or each.tenant == tenant]
        return tuple(sorted(found, key=lambda each: (each.tenant, each.name)))

    def remove(self, tenant: str, name: str) -> None:
        """Remove a network.  Raises: NetworkNotFound; InUse while a container, running or not, has an address of it."""
        with self._lock:
            network = self._find(tenant, name)
            if network is None:
                raise NetworkNotFound(f"cannot remove network `{name}`: you have no such network")
            leases = tuple(self._store.list_leases(network.id))
            if leases:
                raise InUse(
                    f"cannot remove network `{name}`: {len(leases)} container(s) have an address of it, such as"
                    f" `{leases[0].container[:12]}`",
                    hint="remove these containers first",
                )
            self._discard(network)

    # -- addresses -----------------------------------------------------------------------------------------------------

    def lease(
        self, network: NetworkRecord, container_id: str, *, wished_address: str = "", wished_mac: str = ""
    ) -> Attachment:
        """Lease an address to a container until it is released; asked again, the same.

        wished_mac: of a container that arrives with it.  Raises: InvalidSpec, Conflict, AddressPoolExhausted.
        """
        subnet, gateway = IPv4Network(network.subnet), IPv4Address(network.gateway)
        with self._lock:
            leases = tuple(self._store.list_leases(network.id))
            for each in leases:
                if each.container == container_id:
                    return self._attachment(network, each)
            taken = {IPv4Address(each.address) for each in leases}
            if wished_address:
                address = pool.check_address(wished_address, subnet=subnet, gateway=gateway, taken=taken)
            else:
                last = self._last.get(network.id) or self._rest_after(network, taken=taken)
                address = pool.choose_address(subnet, gateway=gateway, taken=taken, last=last)
                self._last[network.id] = address
            mac = wished_mac or pool.mac_of(address, owner=container_id)
            made = Lease(network=network.id, address=str(address), mac=mac, container=container_id)
            self._store.save_lease(made)
            return self._attachment(network, made)

    def release(self, container_id: str) -> None:
        """Give a container's address back.  That it has none is no error."""
        with self._lock:
            for network in self._store.list_networks():
                for each in tuple(self._store.list_leases(network.id)):
                    if each.container == container_id:
                        self._store.delete_lease(network.id, each.address)

    # -- running containers --------------------------------------------------------------------------------------------

    def usable(self, attachment: Attachment) -> Attachment:
        """Return an attachment as this host can serve it now: it may have had IPv6 when the lease was made."""
        return (
            attachment if self.has_ipv6 else replace(attachment, address6="", prefix_length6=0, gateway6="")
        )

    def activate(self, attachment: Attachment, *, container_id: str, limit: Limit | None = None) -> None:
        """Make ready for a container's interface: the bridge is there, its frames may pass.  Before the pair is made."""
        with self._lock:
            active = self._active[container_id] = _Active(attachment=attachment, limit=limit)
            self._relays.give_back(self.usable(attachment))
            self._ensure_bridge(attachment)
            elements = self._attachment_elements(active)
            self._with_rules(lambda: nft.add_elements(elements))

    def deactivate(self, container_id: str) -> None:
        """Undo `activate`, and what was published or named.  Takes 20 ms; nobody waits for it but the caller."""
        with self._lock:
            active = self._active.pop(container_id, None)
            if active is not None:
                self._leaving.append(active)
        self.zone.forget(container_id)
        if active is None:
            return
        try:
            elements = self._attachment_elements(active)
            nft.delete_elements([*elements, *self._port_elements(active)])
        finally:
            with self._left:
                self._leaving.remove(active)
                self._left.notify_all()

    def publish(
        self, attachment: Attachment, wished: Iterable[PortMapping], *, container_id: str, name: str = ""
    ) -> tuple[PortMapping, ...]:
        """Publish ports of an active container; returns them with every host port filled in.

        name: what people call the container, for the next one's error.  Raises: PortInUse naming the holder; InvalidSpec; Exhausted; QuotaExceeded.
        """
        wished = tuple(wished)
        if not wished:
            return ()
        with self._left:
            self._left.wait_for(lambda: not self._are_leaving(wished), LEAVING_SECONDS)
            active = self._active.setdefault(container_id, _Active(attachment=attachment))
            network = self._network_of(attachment)
            active.is_in_lan = bool(network.uplink)
            if network.uplink:
                check_lan_ports(wished, network, name=name or container_id[:12])
            taken = tuple(self._taken(network.tenant))
            used = ports.count(each.mapping for each in taken if not each.is_foreign)
            self._allowance.check(network.tenant, Resource.PORTS, used=used, more=ports.count(wished))
            settled = ports.settle(wished, taken=taken, avoided=self._relays.ports)
            self._relays.give_way(settled)
            bridge.allow_forwarding()
            if not network.uplink:
                bridge.allow_local_ports(attachment.bridge)
                bridge.allow_hairpin(attachment.interface)
            active.ports, active.name = settled, name
            try:
                self._with_rules(lambda: nft.add_elements(self._port_elements(active)))
            except FileExistsError:
                active.ports = ()
                raise PortInUse(
                    f"cannot publish `{ports.describe(settled[0])}`: the firewall leads it elsewhere"
                ) from None
            return settled

    def _taken(self, tenant: str) -> Iterator[ports.Taken]:
        own = {each.id for each in self.list(tenant)}
        for holder, each in self._active.items():
            is_foreign = each.attachment.network not in own
            for mapping in each.ports:
                yield ports.Taken(holder=each.name or holder[:12], mapping=mapping, is_foreign=is_foreign)

    def unpublish(self, container_id: str) -> None:
        """Take a container's published ports away.  That it has none is no error."""
        with self._lock:
            active = self._active.get(container_id)
            if active is None or not active.ports:
                return
            elements = self._port_elements(active)
            active.ports = ()
            nft.delete_elements(elements)

    def relay(self, gone: Gone) -> None:
        """Lead visitors of a container's published ports on to where it has gone.  Until `end_relay`, or the port is needed."""
        with self._lock:
            taken = [mapping for each in self._active.values() for mapping in each.ports]
            places = [each.attachment for each in self._active.values()]
            in_use = {address for each in places for address in (each.address, each.address6)}
            kept = without_taken(gone if self.has_ipv6 else dataclasses.replace(gone, address6=""), taken)
            elements = self._relays.keep(kept, in_use=in_use)
            self._with_rules(lambda: nft.add_elements(elements))
            bridge.allow_forwarding()

    def end_relay(self, container_id: str) -> None:
        """Lead nobody on any more.  That there is no relay is no error."""
        with self._lock:
            self._relays.drop(container_id)

    def is_active(self, container_id: str) -> bool:
        """Tell whether a container's interface is expected on its bridge."""
        with self._lock:
            return container_id in self._active

    def rename(self, container_id: str, name: str) -> None:
        """Call an active container by another name in errors."""
        with self._lock:
            if container_id in self._active:
                self._active[container_id].name = name

    def set_running_names(self, container_id: str, attachment: Attachment, *, names: Iterable[str]) -> None:
        """Have a running container found by name in its network: its name, short id, hostname."""
        addresses = tuple(filter(None, (attachment.address, attachment.address6)))
        self.zone.set_names(container_id, network=attachment.network, addresses=addresses, names=tuple(names))

    def nameservers(self, attachment: Attachment) -> tuple[str, ...]:
        """Return what its resolv.conf should name; empty: as the host's (networks with an uplink)."""
        return (attachment.gateway,) if attachment.network in self.zone.served else ()

    # -- the whole -----------------------------------------------------------------------------------------------------

    def restore_all(self, running: Iterable[Running], *, gone: Iterable[Gone] = ()) -> None:
        """Bring everything back after a start of the daemon or of the host: bridges, one ruleset, names, relays."""
        running = tuple(running)
        with self._lock:
            lans = {each.id for each in self._store.list_networks() if each.uplink}
            self._active = {
                each.container_id: _Active(
                    attachment=each.attachment,
                    ports=each.ports,
                    name=(*each.names, "")[0],
                    is_in_lan=each.attachment.network in lans,
                    limit=each.limit,
                )
                for each in running
            }
            for network in self._store.list_networks():
                try:
                    bridge.ensure(network)
                except Conflict:
                    continue
                self._serve(network)
            for each in running:
                self.set_running_names(each.container_id, each.attachment, names=each.names)
                if each.ports and each.attachment.network not in lans:
                    bridge.allow_local_ports(each.attachment.bridge)
            self._apply_rules()
            for one in gone:
                self.relay(one)

    def remove_all(self) -> None:
        """Take every bridge and rule of this daemon off the host; records and leases stay."""
        with self._lock:
            for network in self._store.list_networks():
                self.zone.end(network.id)
                bridge.remove(network)
            firewall.remove(self._host_name)

    # -- private -------------------------------------------------------------------------------------------------------

    def _find(self, tenant: str, name: str) -> NetworkRecord | None:
        found = (each for each in self._store.list_networks() if each.tenant == tenant and each.name == name)
        return next(found, None)

    def _network_of(self, attachment: Attachment) -> NetworkRecord:
        for each in self._store.list_networks():
            if each.id == attachment.network:
                return each
        raise NetworkNotFound(f"cannot find network `{attachment.network_name}`: it was removed")

    def _rest_after(self, network: NetworkRecord, *, taken: set[IPv4Address]) -> IPv4Address | None:
        if network.uplink:
            return pool.first_rest(IPv4Network(network.subnet), host_name=self._host_name)
        return max(taken, default=None)

    def _attachment(self, network: NetworkRecord, lease: Lease) -> Attachment:
        has_ipv6 = bool(network.subnet6) and self.has_ipv6
        subnet6 = IPv6Network(network.subnet6) if has_ipv6 else None
        return Attachment(
            network=network.id,
            network_name=network.name,
            address=lease.address,
            prefix_length=IPv4Network(network.subnet).prefixlen,
            gateway=network.gateway,
            mac=lease.mac,
            bridge=network.bridge,
            interface=bridge.interface_name(self._host_name, lease.container),
            address6=str(ipv6.address_of(subnet6, IPv4Address(lease.address)) if subnet6 else ""),
            prefix_length6=subnet6.prefixlen if subnet6 else 0,
            gateway6=network.gateway6 if subnet6 else "",
        )

    def _attachment_elements(self, active: _Active) -> Sequence[Element]:
        found = firewall.attachment_elements(self.usable(active.attachment), host_name=self._host_name)
        for each in self._limited((active,)):
            found += firewall.limit_elements(each, host_name=self._host_name)
        return found

    def _limited(self, active: Iterable[_Active]) -> tuple[firewall.Limited, ...]:
        return tuple(
            firewall.Limited(attachment=self.usable(each.attachment), limit=each.limit)
            for each in active
            if each.limit is not None
        )

    def _are_leaving(self, wished: Sequence[PortMapping]) -> bool:
        going = [mapping for each in self._leaving for mapping in each.ports]
        return any(ports.overlaps(one, other) for one in wished for other in going)

    def _port_elements(self, active: _Active) -> Sequence[Element]:
        if active.is_in_lan:
            return firewall.relay_elements(active.relays, host_name=self._host_name)
        published = firewall.Publication(attachment=self.usable(active.attachment), ports=active.ports)
        return firewall.port_elements(published, host_name=self._host_name)

    def _ensure_bridge(self, attachment: Attachment) -> None:
        try:
            with Route() as route:
                route.index_of(attachment.bridge)
        except OSError:
            network = self._network_of(attachment)
            bridge.ensure(network)
            self._serve(network)

    def _with_rules(self, step: Callable[[], None]) -> None:
        # Somebody may have flushed the host's rules: then all of ours are made again, with this step's change in them.
        try:
            step()
        except FileNotFoundError:
            self._apply_rules()

    def _apply_rules(self) -> None:
        active = tuple(self._active.values())
        firewall.apply(
            firewall.State(
                host_name=self._host_name,
                networks=tuple(self._store.list_networks()),
                attachments=tuple(self.usable(each.attachment) for each in active),
                limits=self._limited(active),
                publications=tuple(
                    firewall.Publication(attachment=self.usable(each.attachment), ports=each.ports)
                    for each in active
                    if each.ports and not each.is_in_lan
                ),
                relays=(*self._relays.relays, *(relay for each in active for relay in each.relays)),
                gone=self._relays.addresses,
                has_ipv6=self.has_ipv6,
            )
        )

    def _serve(self, network: NetworkRecord) -> None:
        if not network.uplink:
            subnet = IPv4Network(network.subnet)
            subnet6 = IPv6Network(network.subnet6) if network.subnet6 else None
            served = Served(
                gateway=network.gateway, subnet=subnet, subnet6=subnet6, is_internal=network.internal
            )
            self.zone.serve(network.id, served)

    def _discard(self, network: NetworkRecord) -> None:
        self.zone.end(network.id)
        self._store.delete_network(network.id)
        self._last.pop(network.id, None)
        self._apply_rules()
        bridge.remove(network)

# SPDX-License-Identifier: Apache-2.0
"""Build every object of the daemon and tie them together: the only place that knows all."""

import asyncio
from dataclasses import dataclass

from insula import __version__
from insula.api.call import Api, HostIdentity
from insula.api.changes import Changes
from insula.api.gate import Gate
from insula.api.standing import Standing
from insula.daemon.arrivals import Arrivals
from insula.daemon.containers import Containers
from insula.daemon.draining import Draining
from insula.daemon.operations import OperationRegistry
from insula.daemon.options import Options
from insula.daemon.pairing import PairingDesk
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.daemon.recover import recover_operations
from insula.daemon.rights import PolicyFile, Rights
from insula.daemon.tenants import Limits, Tenants
from insula.daemon.things import Things
from insula.daemon.users import UserDesk
from insula.daemon.watching import Watching
from insula.image.store import Images
from insula.kernel.cgroup.hierarchy import Hierarchies
from insula.kernel.criu_find import find_criu
from insula.migrate.pull import resume_pulls
from insula.migrate.settle import settle_all
from insula.model.quota import Allowance
from insula.monitor.collect import Collector
from insula.network.attach import Networks
from insula.network.names import NameServers
from insula.runtime import init
from insula.runtime.context import Folders, Runtime
from insula.runtime.disks import Disks
from insula.runtime.finish import finish
from insula.runtime.recover import recover, replace_spawner
from insula.runtime.store import Store
from insula.runtime.supervise import Exit, SpawnerClient
from insula.runtime.undo import until_done
from insula.runtime.volumes import Volumes
from insula.tenant.audit import Audit
from insula.tenant.idmap import uid_base


@dataclass
class DaemonVerbs(Things, Containers, Draining, Tenants):
    """All verbs, as `api.verbs.Verbs` wants them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What `main.py` needs to serve and to end."""

    api: Api
    pki: Pki
    policy: PolicyFile
    arrivals: Arrivals
    images: Images
    networks: Networks
    runtime: Runtime
    disks: Disks
    name_servers: NameServers
    collector: Collector

    def close(self) -> None:
        """Let go of everything but the containers."""
        self.runtime.closing.set()
        self.runtime.spawner.close()
        self.images.host.close()
        self.collector.close()
        self.api.close()
        self.api.audit.close()
        self.api.store.close()


def build(options: Options, *, loop: asyncio.AbstractEventLoop) -> Daemon:
    """Open the state folder and take up what the last daemon left.

    Raises: InsulaError if the spawner cannot be reached.
    """
    store = Store(options.state / "db.sqlite")
    recover_operations(store)
    changes = Changes(loop)
    store.subscribe(changes.tell)
    pki = Pki(options.state / "pki", name=options.name)
    images = Images(options.state, store)
    limits = Limits(store)
    policy = PolicyFile(options.policy)
    rights = Rights(store, policy, admins=options.admins)
    networks = Networks(options.name, store, pool_subnet=options.pool, allowance=limits)
    disks = Disks(options.state, store, limits)
    disks.attach_all()
    volumes = Volumes(options.state / "volumes", store, ready=disks.home_of)
    runtime = _runtime(
        options,
        store=store,
        images=images,
        networks=networks,
        volumes=volumes,
        allowance=limits,
        permits=rights,
        disks=disks,
    )
    gate = Gate(limits, is_held=runtime.spawner.is_held)
    peers = PairedHosts(store, pki)
    settle_all(runtime, peers)
    resume_pulls(runtime, peers)
    verbs = DaemonVerbs(
        store=store,
        images=images,
        networks=networks,
        volumes=volumes,
        runtime=runtime,
        peers=peers,
        permits=rights,
        limits=limits,
        allowance=limits,
        disks=disks,
        count_streams=gate.open_of,
    )
    standing = Standing(loop, streams=runtime.spawner)
    collector = Collector()
    watching = Watching(runtime, collector, pki=pki)
    store.subscribe(watching.note)
    runtime.on_phase = watching.note_phase
    audit = Audit(options.state / "audit.log")
    api = Api(
        identity=_identity(options),
        store=store,
        verbs=verbs,
        operations=OperationRegistry(store, loop),
        pairing=PairingDesk(store, pki, name=options.name, address=options.listen),
        changes=changes,
        monitor=watching,
        audit=audit,
        standing=standing,
        policy=policy,
        users=UserDesk(store, pki, host=options.name, address=options.listen, on_change=standing.review_soon),
        gate=gate,
    )
    arrivals = Arrivals(
        pki.server_context(),
        find_host=store.find_host_by_fingerprint,
        audit=audit,
        serve=verbs.receive_migration,
    )
    return Daemon(
        api=api,
        pki=pki,
        policy=policy,
        arrivals=arrivals,
        images=images,
        networks=networks,
        runtime=runtime,
        disks=disks,
        name_servers=NameServers(networks.zone),
        collector=collector,
    )


def _runtime(
    options: Options,
    *,
    store: Store,
    images: Images,
    networks: Networks,
    volumes: Volumes,
    allowance: Allowance,
    permits: Rights,
    disks: Disks,
) -> Runtime:
    """Reach the spawner, take every container up, bring the networks back."""
    folders = Folders(options.state, options.run)
    (options.state / "containers").mkdir(mode=0o700, exist_ok=True)
    init.install(folders.init_layer)
    images.host.added[init.PATH] = init.PROGRAM
    spawner = SpawnerClient(
        options.run,
        log=options.state / "spawner.log",
        on_exit=lambda event: _finish(runtime, event),
        on_lost=lambda: replace_spawner(runtime),
    )
    runtime = Runtime(
        store=store,
        images=images,
        networks=networks,
        volumes=volumes,
        spawner=spawner,
        folders=folders,
        host_name=options.name,
        cgroup_parent=options.cgroup_parent,
        criu=find_criu(),
        permits=permits,
        uid_base_of=lambda tenant: uid_base(store.tenant(tenant).position),
        allowance=allowance,
        home_of=disks.home_of,
    )
    held = spawner.connect()
    images.layers.clean()
    recover(runtime, held)
    return runtime


def _finish(runtime: Runtime, event: Exit) -> None:
    until_done(runtime.closing, lambda: finish(runtime, event), what="write an end down")


def _identity(options: Options) -> HostIdentity:
    criu = find_criu()
    return HostIdentity(
        name=options.name,
        version=__version__,
        cgroups=Hierarchies.detect().mode,
        criu=criu.version if criu else "",
        state_folder=str(options.state),
        admins=options.admins,
    )

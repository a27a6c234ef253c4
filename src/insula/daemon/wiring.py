# SPDX-License-Identifier: Apache-2.0
"""Build every object of the daemon and tie them together: the only place that knows all."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from insula import __version__
from insula.api.call import Api, HostIdentity
from insula.api.changes import Changes
from insula.api.gate import Gate
from insula.api.standing import Standing
from insula.daemon import exporting, held_streams, run_folder
from insula.daemon.arrivals import Arrivals
from insula.daemon.containers import Containers
from insula.daemon.draining import Draining
from insula.daemon.drifting import DriftDesk
from insula.daemon.exporting import Exporter
from insula.daemon.guard import Guard
from insula.daemon.operations import OperationRegistry
from insula.daemon.options import Options
from insula.daemon.pairing import PairingDesk
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.daemon.profile_files import ProfileFiles
from insula.daemon.profiles import ProfileDesk
from insula.daemon.recover import recover_operations
from insula.daemon.rights import PolicyFile, Rights
from insula.daemon.sampler import Sampler
from insula.daemon.sight import Sight
from insula.daemon.tenant_use import TenantUse
from insula.daemon.tenants import Limits, Tenants
from insula.daemon.things import Things
from insula.daemon.uid_ranges import UidRanges
from insula.daemon.unwatched import tell_unwatched
from insula.daemon.users import UserDesk
from insula.daemon.watching import Watching
from insula.image.store import Images
from insula.kernel import descriptors
from insula.kernel.cgroup.hierarchy import Hierarchies
from insula.kernel.criu_find import find_criu
from insula.migrate.pull import resume_pulls
from insula.migrate.settle import settle_all
from insula.model.record import ContainerRecord
from insula.monitor.collect import Collector
from insula.monitor.history import History
from insula.network.attach import Networks
from insula.network.names import NameServers
from insula.runtime import init, quotas
from insula.runtime.building import Building, remove_leftovers
from insula.runtime.charged import end_leftovers
from insula.runtime.context import Folders, Runtime
from insula.runtime.disks import Disks
from insula.runtime.finish import finish
from insula.runtime.recover import recover, replace_spawner
from insula.runtime.store import Store
from insula.runtime.supervise import Exit, SpawnerClient
from insula.runtime.undo import until_done
from insula.runtime.unpacking import Unpacking
from insula.runtime.volumes import Volumes
from insula.tenant.audit import Audit


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

    def reload(self) -> None:
        """Read policy, rules and exports anew; what is wrong is logged, and what counted before stays."""
        self.policy.reload_or_keep()
        self.api.rules.reload_or_keep()
        self.api.exports.reload_or_keep()

    def close(self) -> None:
        """Let go of everything but the containers."""
        self.runtime.closing.set()
        self.runtime.spawner.close()
        self.images.host.close()
        self.api.profiles.close()
        self.api.rules.close()
        self.api.drifts.close()
        self.api.exports.close()
        self.api.history.close()
        self.collector.close(at_once=True)
        self.api.close()
        self.api.audit.close()
        self.api.store.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What everything else stands on: the state folder, opened."""

    store: Store
    pki: Pki
    policy: PolicyFile
    rights: Rights
    limits: Limits
    uid_ranges: UidRanges
    disks: Disks
    images: Images
    networks: Networks
    volumes: Volumes
    profiles: ProfileFiles

    @classmethod
    def open(cls, options: Options) -> "_Ground":
        store = Store(options.state / "db.sqlite")
        policy, limits = PolicyFile(options.policy), Limits(store, built_in=quotas.built_in())
        disks = Disks(options.state, store, limits)
        disks.attach_all()
        uid_ranges = UidRanges(store)
        uid_ranges.tell_state()
        return cls(
            store=store,
            pki=Pki(options.state / "pki", name=options.name),
            policy=policy,
            rights=Rights(store, policy, admins=options.admins),
            limits=limits,
            uid_ranges=uid_ranges,
            disks=disks,
            images=Images(options.state, store),
            networks=Networks(options.name, store, pool_subnet=options.pool, allowance=limits),
            volumes=Volumes(options.state / "volumes", store, allowance=limits, ready=disks.home_of),
            profiles=ProfileFiles(options.state / "profiles", limits),
        )


def build(options: Options, *, loop: asyncio.AbstractEventLoop) -> Daemon:
    """Open the state folder and take up what the last daemon left.

    Raises: InsulaError if the spawner cannot be reached.
    """
    ground = _Ground.open(options)
    recover_operations(ground.store)
    runtime = _runtime(options, ground)
    sight = Sight(ground.policy)
    exporter = exporting.begin(options, sight=sight)
    runtime.tracer = exporter.tracer
    peers = PairedHosts(ground.store, ground.pki)
    settle_all(runtime, peers)
    resume_pulls(runtime, peers)
    gate = Gate(ground.limits, held=runtime.spawner.held)
    verbs = _verbs(ground, runtime, peers=peers, gate=gate)
    collector = Collector()
    api = _api(
        options,
        ground,
        verbs=verbs,
        gate=gate,
        collector=collector,
        exporter=exporter,
        sight=sight,
        loop=loop,
    )
    containers = runtime.spawner.streams()
    held_streams.take_up(api, runtime.spawner.connections(), containers=containers, run=options.run)
    arrivals = Arrivals(
        ground.pki.server_context(),
        find_host=ground.store.find_host_by_fingerprint,
        audit=api.audit,
        serve=verbs.receive_migration,
    )
    return Daemon(
        api=api,
        pki=ground.pki,
        policy=ground.policy,
        arrivals=arrivals,
        images=ground.images,
        networks=ground.networks,
        runtime=runtime,
        disks=ground.disks,
        name_servers=NameServers(ground.networks.zone),
        collector=collector,
    )


def _verbs(ground: _Ground, runtime: Runtime, *, peers: PairedHosts, gate: Gate) -> DaemonVerbs:
    return DaemonVerbs(
        store=ground.store,
        images=ground.images,
        networks=ground.networks,
        volumes=ground.volumes,
        runtime=runtime,
        peers=peers,
        permits=ground.rights,
        limits=ground.limits,
        uid_ranges=ground.uid_ranges,
        allowance=ground.limits,
        disks=ground.disks,
        use=TenantUse(
            runtime,
            ground.disks,
            count_streams=gate.open_of,
            count_requests=gate.requests_per_second,
            count_profiles=ground.profiles.count,
        ),
        filler_of=Unpacking(runtime).filler_of,
        starter_of=Building(runtime).starter_of,
    )


def _api(
    options: Options,
    ground: _Ground,
    *,
    verbs: DaemonVerbs,
    gate: Gate,
    collector: Collector,
    exporter: Exporter,
    sight: Sight,
    loop: asyncio.AbstractEventLoop,
) -> Api:
    store, runtime = ground.store, verbs.runtime
    changes = Changes(loop)
    changes.know(store.list_containers())
    store.subscribe(changes.tell)
    changes.listen(exporter.take_change)
    standing = Standing(loop, streams=runtime.spawner)
    watching = Watching(runtime, collector, pki=ground.pki, sight=sight)
    store.subscribe(watching.note)
    profiles = ProfileDesk(runtime, collector, watching, sight=sight, files=ground.profiles)
    store.subscribe(profiles.recordings.note)
    exporter.follow(runtime, collector, watching)
    drifts = DriftDesk(runtime, collector, watching, sight=sight, announce=changes.announce)
    store.subscribe(drifts.note)
    guard = Guard(runtime, collector, watching, sight=sight, folder=options.rules, announce=changes.announce)
    store.subscribe(guard.note)
    runtime.before_start = _each(
        profiles.recordings.before_start, exporter.before_start, drifts.before_start, guard.before_start
    )
    history = History(options.state / "history.sqlite")
    lived_on = [each for each in store.list_containers() if collector.watchers(each.id)]
    tell_unwatched(lived_on, last_at=history.last_at, announce=changes.announce)
    sampler = Sampler(runtime, collector, watching, history=history)
    store.subscribe(sampler.note)
    runtime.on_phase = watching.note_phase
    desk = UserDesk(
        store, ground.pki, host=options.name, address=options.listen, on_change=standing.review_soon
    )
    return Api(
        identity=_identity(options, ground.pki),
        store=store,
        verbs=verbs,
        operations=OperationRegistry(store, loop, tracer=exporter.tracer),
        pairing=PairingDesk(store, ground.pki, name=options.name, address=options.listen),
        changes=changes,
        monitor=watching,
        history=sampler,
        profiles=profiles,
        drifts=drifts,
        rules=guard,
        sight=sight,
        exports=exporter,
        tracer=exporter.tracer,
        audit=Audit(options.state / "audit.log", tell=exporter.tell_audit),
        standing=standing,
        policy=ground.policy,
        users=desk,
        gate=gate,
    )


def _each(*hooks: Callable[[ContainerRecord], None]) -> Callable[[ContainerRecord], None]:
    def call(record: ContainerRecord) -> None:
        for hook in hooks:
            hook(record)

    return call


def _runtime(options: Options, ground: _Ground) -> Runtime:
    """Reach the spawner, take every container up, bring the networks back."""
    folders = Folders(options.state, options.run)
    (options.state / "containers").mkdir(mode=0o700, exist_ok=True)
    init.install(folders.init_layer)
    ground.images.host.added[init.PATH] = init.PROGRAM
    spawner = SpawnerClient(
        options.run,
        log=options.state / "spawner.log",
        on_exit=lambda event: _finish(runtime, event),
        on_lost=lambda: replace_spawner(runtime),
        soft_descriptors=descriptors.raise_limit(),
    )
    runtime = Runtime(
        store=ground.store,
        images=ground.images,
        networks=ground.networks,
        volumes=ground.volumes,
        spawner=spawner,
        folders=folders,
        host_name=options.name,
        cgroup_parent=options.cgroup_parent,
        criu=find_criu(),
        permits=ground.rights,
        uid_base_of=ground.uid_ranges.base_of,
        allowance=ground.limits,
        home_of=ground.disks.home_of,
    )
    run_folder.check_unserved(options.run, options.state)
    held = spawner.connect()
    run_folder.claim(options.run, options.state, is_holding=bool(held))
    ground.images.layers.clean()
    end_leftovers(runtime)
    remove_leftovers(options.state)
    quotas.weigh_all(runtime)
    recover(runtime, held)
    return runtime


def _finish(runtime: Runtime, event: Exit) -> None:
    until_done(runtime.closing, lambda: finish(runtime, event), what="write an end down")


def _identity(options: Options, pki: Pki) -> HostIdentity:
    criu = find_criu()
    return HostIdentity(
        name=options.name,
        version=__version__,
        cgroups=Hierarchies.detect().mode,
        criu=criu.version if criu else "",
        state_folder=str(options.state),
        admins=options.admins,
        fingerprint=pki.fingerprint,
    )

# SPDX-License-Identifier: Apache-2.0
"""What every verb of the runtime works with: the store, the images, the networks, the spawner, the folders, the locks.

Built once by `daemon/wiring.py`.  A verb is a function `verb(grant, runtime, ref, …)`; it finds the container of the
grant's tenant, holds its lock while it changes it, and ends with the new record stored.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from insula.image.store import Images
from insula.kernel.cgroup import Group, Hierarchies
from insula.kernel.criu_find import CriuProgram
from insula.model.errors import Unsupported, WrongState
from insula.model.grant import Grant, scope
from insula.model.lifecycle import ALIVE, AT_REST
from insula.model.permit import Permits
from insula.model.quota import Allowance, Unlimited
from insula.model.record import ContainerRecord
from insula.model.span import Tracer
from insula.network.attach import Networks
from insula.runtime.doubt import Doubts
from insula.runtime.locks import Locks
from insula.runtime.store import Store
from insula.runtime.supervise import SpawnerClient
from insula.runtime.turns import Turns
from insula.runtime.volumes import Volumes

TENANT_PREFIX = "tenant-"
"""Before a tenant's name as a cgroup's: no file of the kernel in there has such a name (cgroup v1 has one called `tasks`)."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things lie.  The state folder is root's alone (0700)."""

    state: Path
    run: Path

    def container(self, container_id: str) -> Path:
        return self.state / "containers" / container_id

    def upper(self, container_id: str) -> Path:
        """The writable layer; files in it carry container ids."""
        return self._written(container_id) / "upper"

    def work(self, container_id: str) -> Path:
        return self._written(container_id) / "work"

    def _written(self, container_id: str) -> Path:
        """What the container's own limit of bytes counts: on its own disk if it has one (`own_disk.py`)."""
        own = self.container(container_id) / "disk"
        return own if own.is_dir() else self.container(container_id)

    def log(self, container_id: str) -> Path:
        """Records of `boot/stdio.py`; the older half is `log.1`."""
        return self.container(container_id) / "log"

    def checkpoint(self, container_id: str, name: str) -> Path:
        return self.container(container_id) / "checkpoints" / name

    @property
    def init_layer(self) -> Path:
        """A layer with nothing but the small init that is pid 1."""
        return self.state / "init-layer"


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Everything a verb may use."""

    store: Store
    images: Images
    networks: Networks
    volumes: Volumes
    spawner: SpawnerClient
    folders: Folders
    host_name: str
    cgroup_parent: str
    criu: CriuProgram | None
    permits: Permits
    """Who may ask for what now."""
    uid_base_of: Callable[[str], int]
    """Tenant → first uid of its range.  Raises: UidRangeExhausted."""
    allowance: Allowance = field(default_factory=Unlimited)
    home_of: Callable[[str], Path | None] = field(default=lambda _tenant: None)
    """Tenant → where its containers' folders lie, if not in the state folder (`disks.py`).  Raises: InsulaError."""
    weight: int = 0
    """Of all containers together, as it was set last; 0: not yet."""
    closing: threading.Event = field(default_factory=threading.Event)
    taken_up: threading.Event = field(default_factory=threading.Event)
    """Set when what an earlier insulad left is as the store says (`recover.py`)."""
    _locks: Locks = field(default_factory=Locks)
    doubts: Doubts = field(default_factory=Doubts)
    turns: Turns = field(default_factory=Turns)
    """Who may have a container stand still for a move."""
    dropping: set[str] = field(default_factory=set)
    """Arrivals that never run here, and of which not every trace is gone."""
    before_start: Callable[[ContainerRecord], None] = lambda _record: None
    """Told before anything of a container's programs is there; its limits' groups may be made then."""
    on_phase: Callable[[str, str, str], None] = lambda _container, _phase, _host: None
    """Told (container, phase, the other host) before each phase of a move away from here."""
    tracer: Tracer = field(default_factory=Tracer)
    """Where traces of what other hosts ask for begin."""
    ended: threading.Condition = field(default_factory=threading.Condition)
    """Notified whenever a container's end has been written down."""

    @contextmanager
    def locked(self, container_id: str) -> Iterator[None]:
        """Hold a container: one verb at a time changes it."""
        with self._locks.hold(container_id):
            yield

    @contextmanager
    def locked_within(self, container_id: str, *, seconds: float) -> Iterator[bool]:
        """Hold a container if nobody else does for all that time.  Yields: whether it is held."""
        with self._locks.hold_within(container_id, seconds=seconds) as is_held:
            yield is_held

    def find(self, grant: Grant, ref: str) -> ContainerRecord:
        """Find a container of the grant's tenant; `*` (an admin's) is every one.

        Raises: ContainerNotFound, Conflict for a prefix of several.
        """
        return self.store.find_container(scope(grant), ref)

    def find_alive(self, grant: Grant, ref: str) -> ContainerRecord:
        """As `find`.  Raises also: WrongState if it does not run."""
        record = self.find(grant, ref)
        if record.status not in ALIVE:
            raise not_running(record)
        return record

    def group(self, record: ContainerRecord) -> Group:
        """Return the container's cgroups, seen as the spawner sees them: ours may lie elsewhere."""
        # insula before tenants had groups started it beside all others: it stays there until it ends.
        old = Group(self.hierarchies(), self.cgroup_parent, record.id)
        return (
            old if old.exists() else Group(self.hierarchies(), self.tenant_parent(record.tenant), record.id)
        )

    def tenant_parent(self, tenant: str) -> str:
        """Return the cgroup above a tenant's containers: their sum is limited there, and shares processors with others'."""
        if not self.spawner.knows_tenants:
            return self.cgroup_parent
        return f"{self.cgroup_parent}/{TENANT_PREFIX}{tenant}"

    def tenant_group(self, tenant: str) -> Group:
        """Return a tenant's cgroups themselves."""
        return Group(self.hierarchies(), self.cgroup_parent, f"{TENANT_PREFIX}{tenant}")

    def hierarchies(self) -> Hierarchies:
        return self.spawner.hierarchies()

    def need_criu(self) -> CriuProgram:
        """Return CRIU.  Raises: Unsupported with the cure."""
        if self.criu is None:
            raise Unsupported(
                "cannot checkpoint: this host has no CRIU that works", hint="run `insula setup`"
            )
        return self.criu


def not_running(record: ContainerRecord) -> WrongState:
    """Return what is said where a container has to run and does not."""
    return WrongState(
        f"container `{record.name}` is not running: it is {record.status.value}",
        hint=f"insula start {record.name}" if record.status in AT_REST else "",
    )

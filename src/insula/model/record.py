# SPDX-License-Identifier: Apache-2.0
"""What is: the state of containers, images, networks, volumes, hosts and operations, as stored and as shown.

Records tolerate unknown fields (a newer insulad wrote them) and have defaults for fields that came later.  Pure: no
I/O; the store is `runtime/store.py`.  Times are UTC seconds since the epoch, 0.0 meaning never.
"""

from enum import StrEnum

import msgspec

from insula.model.lifecycle import Status
from insula.model.spec import AppliedProfile, PortMapping, Spec


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: frozen; unknown fields of newer versions are ignored."""


class ImageConfig(Fact, kw_only=True, frozen=True):
    """The part of the OCI image configuration that a start needs."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    """As `80/tcp`."""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}


class LayerRecord(Fact, kw_only=True, frozen=True):
    digest: str
    """sha256:… of the layer's canonical tar."""
    size_bytes: int


class ImageRecord(Fact, kw_only=True, frozen=True):
    id: str
    """sha256:… over configuration and layer digests."""
    names: tuple[str, ...] = ()
    tenant: str = ""
    """Empty: made by the system, usable by everybody."""
    layers: tuple[LayerRecord, ...] = ()
    """Bottom first."""
    config: ImageConfig = ImageConfig()
    created_at: float = 0.0
    source: str = ""
    """host, debian, import."""


class Attachment(Fact, kw_only=True, frozen=True):
    """A container's place in a network."""

    network: str
    """Network id."""
    network_name: str
    address: str
    prefix_length: int
    gateway: str
    mac: str
    bridge: str
    interface: str
    """Name of the host's end of the veth pair."""
    address6: str = ""
    """Its IPv6 address; empty in a network without."""
    prefix_length6: int = 0
    gateway6: str = ""


class NetworkRecord(Fact, kw_only=True, frozen=True):
    id: str
    name: str
    tenant: str
    subnet: str
    gateway: str
    bridge: str
    subnet6: str = ""
    """IPv6 CIDR; empty: IPv4 only."""
    gateway6: str = ""
    uplink: str = ""
    internal: bool = False
    labels: dict[str, str] = {}
    created_at: float = 0.0


class Lease(Fact, kw_only=True, frozen=True):
    """An address that a container holds until it is removed."""

    network: str
    address: str
    mac: str
    container: str


class VolumeRecord(Fact, kw_only=True, frozen=True):
    name: str
    tenant: str
    created_at: float = 0.0
    labels: dict[str, str] = {}
    anonymous: bool = False


class ContainerRecord(Fact, kw_only=True, frozen=True):
    id: str
    """64 hexadecimal digits."""
    name: str
    tenant: str
    spec: Spec
    image: str
    """Image id."""
    layers: tuple[str, ...]
    """Digests, bottom first, fixed at creation."""
    config: ImageConfig
    status: Status
    uid_base: int
    """First host uid (and gid) of the container's 65,536."""
    created_at: float
    started_at: float = 0.0
    finished_at: float = 0.0
    pid: int = 0
    """Host pid of pid 1; 0 when not running."""
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    restart_count: int = 0
    stopped_by_user: bool = False
    attachment: Attachment | None = None
    ports: tuple[PortMapping, ...] = ()
    """As published, with the host ports that were picked."""
    generation: int = 1
    """Grows with each change of owner; fences an old owner."""
    owner: str = ""
    """Name of the host that owns the container."""
    creator: str = ""
    """Name of the user who made it here; empty: another host sent it.  What it may ask for is this user's."""
    creator_uid: int | None = None
    """None: a remote user, or none of this host."""
    creator_is_admin: bool = False
    """It was made with an admin's rights; what an admin's token for less has made was not."""
    came_from: str = ""
    """Name of the host that carried it here last; it may call it back."""
    profile: AppliedProfile | None = None
    """What it is held to since its last start; the specification's counts from the next one on."""


class CheckpointRecord(Fact, kw_only=True, frozen=True):
    name: str
    container: str
    tenant: str
    created_at: float
    size_bytes: int
    criu_version: str
    kernel_release: str
    encrypted: bool = False
    key: str = "host"
    """What seals it: this host's own key, or a `file` that the caller holds."""
    seal: str = ""
    """The code of its manifest (`runtime/seal.py`)."""
    profile: AppliedProfile | None = None
    """What the container was held to."""


class HostRecord(Fact, kw_only=True, frozen=True):
    """A paired host."""

    name: str
    address: str
    fingerprint: str
    """sha256 of its certificate (DER), hexadecimal: the pin."""
    added_at: float = 0.0


class PlannedMove(Fact, kw_only=True, frozen=True):
    """Where a container would go when its host is drained."""

    container: str
    name: str
    tenant: str
    target: str


class OperationStatus(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Progress(Fact, kw_only=True, frozen=True):
    """How far an operation is.  Totals of 0 are unknown."""

    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    message: str = ""


class ErrorBody(Fact, kw_only=True, frozen=True):
    code: str
    message: str
    hint: str = ""


class OperationRecord(Fact, kw_only=True, frozen=True):
    id: str
    kind: str
    """migrate, checkpoint, restore, image-build, image-import."""
    tenant: str
    subject: str
    container: str = ""
    """Id of the container that it is done to; empty: to none."""
    status: OperationStatus
    may_cancel: bool = False
    progress: Progress = Progress()
    result: dict[str, str | int | float | bool] = {}
    error: ErrorBody | None = None
    created_at: float = 0.0
    finished_at: float = 0.0


class ContainerStats(Fact, kw_only=True, frozen=True):
    id: str
    name: str
    cpu_usage_us: int = 0
    sampled_at: float = 0.0
    """Monotonic seconds of the daemon's clock."""
    memory_bytes: int = 0
    memory_limit_bytes: int | None = None
    pids: int = 0
    pids_limit: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    cpu_user_us: int = 0
    cpu_system_us: int = 0
    throttled_us: int = 0
    memory_cache_bytes: int = 0
    oom_kills: int = 0
    cpu_wait_us: int | None = None
    """Pressure: for how long at least one process waited for a processor; None: this kernel does not say."""
    memory_wait_us: int | None = None
    io_wait_us: int | None = None
    received_packets: int = 0
    sent_packets: int = 0
    disk_bytes: int | None = None
    """What lies on its own disk; None: it has none."""
    disk_limit_bytes: int | None = None
    tenant: str = ""
    image: str = ""
    """As it was asked for."""
    started_at: float = 0.0
    seen_at: float = 0.0
    """As `sampled_at`, by the clock on the wall."""
    cpu_quota_us: int | None = None
    """Of each `cpu_period_us`; None: no limit."""
    cpu_period_us: int = 0
    cpu_periods: int = 0
    throttled_periods: int = 0
    memory_anonymous_bytes: int = 0
    memory_working_set_bytes: int = 0
    """Without the part of the page cache that is easily given back."""
    cpu_stalled_us: int | None = None
    """Pressure: for how long no process went on, for want of a processor."""
    memory_stalled_us: int | None = None
    io_stalled_us: int | None = None


class ProcessRecord(Fact, kw_only=True, frozen=True):
    """A process of a container, as `top` shows it."""

    pid: int
    """In the container's pid namespace."""
    host_pid: int
    parent_pid: int
    uid: int
    state: str
    cpu_time_s: float
    resident_bytes: int
    command: str


class ChangedPath(Fact, kw_only=True, frozen=True):
    kind: str
    """A(dded), C(hanged), D(eleted)."""
    path: str


class LogLine(Fact, kw_only=True, frozen=True):
    """A line that a program wrote, without its line end."""

    time: float
    """When its first bytes came."""
    stream: str
    """stdout, stderr."""
    text: str
    """Bytes that are not UTF-8 as surrogates (`surrogateescape`)."""


class PathStat(Fact, kw_only=True, frozen=True):
    """A path in a container: the header `X-Insula-Path-Stat`."""

    name: str
    mode: int
    size: int
    is_directory: bool
    link_target: str = ""

# SPDX-License-Identifier: Apache-2.0
"""What a user wishes: the specification of a container, an exec, a network, a volume, an image build.

A `Spec` is decoded once, strictly, at the daemon's edge (`forbid_unknown_fields`), checked by `check_spec`, and
never changed afterwards.  What is true of a container stands in `record.py`.  Pure: no I/O.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from insula.model.profile_name import PROFILE_NAME


class RestartKind(StrEnum):
    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


class MountKind(StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


MAX_STOP_S = 86_400
"""A day: who wishes for more has mistaken the unit."""
Seconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_STOP_S)]
MaxPause = Annotated[int, msgspec.Meta(ge=1, le=3_600_000)]
DEFAULT_MAX_PAUSE_MS = 300


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything a user sends: frozen, keyword-only, unknown fields refused."""


class RestartPolicy(Wish, kw_only=True, frozen=True):
    kind: RestartKind = RestartKind.NO
    max_retries: int = 0
    """Only for on-failure; 0 means without limit."""


class Enforce(StrEnum):
    """What happens to what a profile lacks; it is told as an event either way."""

    LOG = "log"
    """It is done."""
    DENY = "deny"
    """System calls fail with EPERM, what needs a capability as without it, writing with EROFS, starting a program with EACCES, connections are refused."""


ProfileName = Annotated[str, msgspec.Meta(pattern=PROFILE_NAME)]


class AppliedProfile(Wish, kw_only=True, frozen=True):
    """What of a recorded profile (`profile.py`) a container is held to.  It goes along to other hosts."""

    name: ProfileName
    calls: tuple[str, ...]
    """System calls; empty: all that are allowed without a profile."""
    capabilities: tuple[str, ...] | None
    """None: all that it has without a profile, as in those below."""
    programs: tuple[str, ...] | None = None
    """Files that may be started, of those in folders of programs and in those that are written in."""
    written: tuple[str, ...] | None = None
    """Folders in which it may write, with all below them."""
    outgoing: tuple[str, ...] | None = None
    """Whom it may connect to: see `model/peer.py`."""
    serving: tuple[str, ...] = ()
    """Where it listens for datagrams, which it may answer to anybody."""
    refused_calls: tuple[str, ...] = ()
    """What was tried in vain when it was recorded, and is no drift; so the next."""
    refused_capabilities: tuple[str, ...] = ()
    refused_programs: tuple[str, ...] = ()
    refused_folders: tuple[str, ...] = ()
    enforce: Enforce = Enforce.DENY


class MountWish(Wish, kw_only=True, frozen=True):
    kind: MountKind
    source: str = ""
    """Host path (bind), volume name (volume), empty (tmpfs, anonymous volume)."""
    target: str
    """Absolute path in the container."""
    read_only: bool = False
    size_bytes: int | None = None
    """tmpfs only."""


class DeviceWish(Wish, kw_only=True, frozen=True):
    """A device of the host's that the container may open."""

    source: str
    """Its node on the host, below /dev."""
    target: str = ""
    """Where the container finds it, below /dev; empty: as on the host."""
    access: str = "rwm"
    """What is allowed: r read, w write, m make nodes of it."""


class PortMapping(Wish, kw_only=True, frozen=True):
    """One range of ports: host_port + i → container_port + i, for i < count."""

    host_address: str = "0.0.0.0"
    """0.0.0.0: every address of the host, the IPv6 ones too; `::`: only those."""
    host_port: int = 0
    """0: the daemon picks a free port."""
    container_port: int
    count: int = 1
    protocol: str = "tcp"
    """tcp or udp."""


class Spec(Wish, kw_only=True, frozen=True):
    """A container as it is wished."""

    image: str
    name: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    """None: the image's; empty tuple: none."""
    environment: tuple[str, ...] = ()
    """NAME=value."""
    working_directory: str = ""
    user: str = ""
    """name, uid, name:group or uid:gid, resolved in the container's /etc/passwd."""
    hostname: str = ""
    tty: bool = False
    stdin_open: bool = False
    system: bool = False
    """--init: the image's own init (or the command) is pid 1, without insula's small init before it."""
    mounts: tuple[MountWish, ...] = ()
    devices: tuple[DeviceWish, ...] = ()
    read_only: bool = False
    ports: tuple[PortMapping, ...] = ()
    network: str = "default"
    """A network's name, or `none`."""
    address: str = ""
    """A wished IPv4 address of that network; empty: the next free one."""
    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpus_milli: int | None = None
    """Thousandths of a CPU: 1500 is one and a half."""
    pids: int | None = None
    disk_bytes: int | None = None
    """What it may write into its own root, without volumes; None: what there is."""
    inodes: int | None = None
    """Files there; only with `disk_bytes`.  None: as many as its disk is made for."""
    restart: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    labels: dict[str, str] = {}
    stop_signal: str = ""
    stop_timeout_s: Seconds = 10
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    rlimits: dict[str, int] = {}
    """Name without RLIMIT_, lower case → soft and hard limit."""
    profile: AppliedProfile | None = None
    """Takes away, never adds."""
    max_pause_ms: MaxPause | None = None
    """For how long it may stand still when it is migrated; None: DEFAULT_MAX_PAUSE_MS."""

    def volumes(self) -> frozenset[str]:
        """Return the names of the volumes that it mounts."""
        return frozenset(each.source for each in self.mounts if each.kind is MountKind.VOLUME)


class ExecSpec(Wish, kw_only=True, frozen=True):
    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    tty: bool = False
    stdin_open: bool = False
    detach: bool = False
    rows: int = 0
    columns: int = 0


class Ipv6(StrEnum):
    """Whether a network has IPv6 beside IPv4."""

    AUTO = "auto"
    """If this host's kernel has it; with an uplink only if a subnet is named."""
    ON = "on"
    OFF = "off"


class NetworkWish(Wish, kw_only=True, frozen=True):
    name: str
    subnet: str = ""
    """IPv4 CIDR; empty: the next free /24 of the pool."""
    gateway: str = ""
    ipv6: Ipv6 = Ipv6.AUTO
    subnet6: str = ""
    """IPv6 CIDR; empty: a unique local /64 of its own."""
    gateway6: str = ""
    uplink: str = ""
    """A host interface that becomes a port of the bridge, so that containers stand in that LAN.  Admin only."""
    internal: bool = False
    """No NAT to the outside."""
    labels: dict[str, str] = {}


class VolumeWish(Wish, kw_only=True, frozen=True):
    name: str = ""
    labels: dict[str, str] = {}


class ImageBuildWish(Wish, kw_only=True, frozen=True):
    name: str
    debian: str = "bookworm"
    packages: tuple[str, ...] = ()
    mirror: str = ""
    """Empty: the mirror of this host's own apt sources."""


class StopWish(Wish, kw_only=True, frozen=True):
    signal: str = ""
    timeout_s: Seconds | None = None


class KillWish(Wish, kw_only=True, frozen=True):
    signal: str = "KILL"


class RenameWish(Wish, kw_only=True, frozen=True):
    name: str


class ResizeWish(Wish, kw_only=True, frozen=True):
    rows: int
    columns: int


class CheckpointWish(Wish, kw_only=True, frozen=True):
    name: str = ""
    leave_running: bool = False
    encrypt: bool = False
    """Nothing of it lies readable on a disk."""
    key: str = ""
    """Content of a key file, base64; empty: this host's own key."""


class RestoreWish(Wish, kw_only=True, frozen=True):
    checkpoint: str = ""
    """Empty: the newest one."""
    key: str = ""
    """Content of the key file that it was made with, base64."""


class Mode(StrEnum):
    """What of a container's memory travels before it stops."""

    AUTO = "auto"
    """As `pre-copy` where this kernel can tell what was written, else as `stop-copy`."""
    STOP_COPY = "stop-copy"
    """Nothing: all of it while the container stands."""
    PRE_COPY = "pre-copy"
    """All of it, then what was written meanwhile, until what is left fits into the pause."""
    POST_COPY = "post-copy"
    """Nothing; it runs on the target before its memory is there.  A source that dies before all has come takes it along."""


class MigrateWish(Wish, kw_only=True, frozen=True):
    target: str
    """A paired host's name."""
    mode: Mode = Mode.AUTO
    max_pause_ms: MaxPause | None = None
    """The move is refused before anything stops if it would stop for longer.  None: the container's own."""
    plan: bool = False
    """Say what it would be like, and move nothing."""


class Resolution(StrEnum):
    """What an administrator decides about a container whose other host never returns."""

    KEEP = "keep"
    """It is this host's: it runs here; the other host loses what it has."""
    GIVE_UP = "give-up"
    """It is the other host's: nothing of it stays here."""


class ResolveWish(Wish, kw_only=True, frozen=True):
    decision: Resolution


class DrainWish(Wish, kw_only=True, frozen=True):
    to: tuple[str, ...] = ()
    """Paired hosts that may take something; empty: all that answer."""
    parallel: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """Moves at a time."""
    max_pause_ms: MaxPause | None = None
    plan: bool = False


class UndrainWish(Wish, kw_only=True, frozen=True):
    max_pause_ms: MaxPause | None = None


class HostWish(Wish, kw_only=True, frozen=True):
    """Pair with another host: `token` is what `insula host token` printed there."""

    name: str
    address: str
    """host:port of the other insulad's TLS listener."""
    token: str

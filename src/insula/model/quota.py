# SPDX-License-Identifier: Apache-2.0
"""What a tenant may use at most: the resources, the words and units in which people say them, and the records.

Decided in `tenant/quota.py`, measured and enforced by `daemon/tenants.py` and whoever it hands an `Allowance` to.
Pure: no I/O.
"""

from enum import StrEnum
from typing import Protocol

import msgspec

from insula.model.record import Fact
from insula.model.spec import Wish


class Resource(StrEnum):
    """What can run out.  The value is the word of `insula tenant set`."""

    MEMORY = "memory"
    CPUS = "cpus"
    WEIGHT = "weight"
    PIDS = "pids"
    DISK = "disk"
    INODES = "inodes"
    CONTAINERS = "containers"
    NETWORKS = "networks"
    VOLUMES = "volumes"
    PROFILES = "profiles"
    PORTS = "ports"
    STREAMS = "streams"
    REQUESTS = "requests"
    LOG = "log"
    IMAGES = "images"
    BUILD_TIME = "build-time"


class Unit(StrEnum):
    BYTES = "bytes"
    MILLI_CPUS = "thousandths of a CPU"
    COUNT = ""
    PER_SECOND = "per second"
    SECONDS = "seconds"


class Kind(msgspec.Struct, frozen=True):
    """What is known of a resource: its unit, what it is called in an error, and the least limit that makes sense."""

    unit: Unit
    words: str
    least: int = 0


KINDS: dict[Resource, Kind] = {
    Resource.MEMORY: Kind(Unit.BYTES, "memory of all containers", 6 << 20),
    Resource.CPUS: Kind(Unit.MILLI_CPUS, "processors of all containers", 10),
    Resource.WEIGHT: Kind(Unit.COUNT, "share of the processors when all are busy (100 is usual)", 1),
    Resource.PIDS: Kind(Unit.COUNT, "processes of all containers", 2),
    Resource.DISK: Kind(Unit.BYTES, "disk of containers, volumes and logs", 64 << 20),
    Resource.INODES: Kind(Unit.COUNT, "files of containers and volumes", 1000),
    Resource.CONTAINERS: Kind(Unit.COUNT, "containers"),
    Resource.NETWORKS: Kind(Unit.COUNT, "networks"),
    Resource.VOLUMES: Kind(Unit.COUNT, "volumes"),
    Resource.PROFILES: Kind(Unit.COUNT, "kept profiles"),
    Resource.PORTS: Kind(Unit.COUNT, "published ports"),
    Resource.STREAMS: Kind(Unit.COUNT, "open streams"),
    Resource.REQUESTS: Kind(Unit.PER_SECOND, "requests of all users together", 1),
    Resource.LOG: Kind(Unit.BYTES, "log of a container", 64 << 10),
    Resource.IMAGES: Kind(Unit.BYTES, "images"),
    Resource.BUILD_TIME: Kind(Unit.SECONDS, "time of a build", 1),
}

USUAL_WEIGHT = 100
MAX_WEIGHT = 10_000
"""The kernel's, of cgroup v2."""


class Quota(Fact, kw_only=True, frozen=True):
    """Limits by resource.  None: without limit; what is absent is as the default says, and unlimited there."""

    limits: dict[Resource, int | None] = msgspec.field(default_factory=dict)


class QuotaWish(Wish, kw_only=True, frozen=True):
    """Change limits: a number sets one, None lifts it, and what is in `inherit` is as the default says from now on."""

    limits: dict[Resource, int | None] = msgspec.field(default_factory=dict)
    inherit: tuple[Resource, ...] = ()


class TenantWish(Wish, kw_only=True, frozen=True):
    name: str
    limits: dict[Resource, int | None] = msgspec.field(default_factory=dict)


class Use(Fact, kw_only=True, frozen=True):
    """A resource as it stands.  None: not counted; without limit."""

    resource: Resource
    unit: Unit
    used: int | None = None
    limit: int | None = None
    is_default: bool = True
    """The limit is everybody's."""
    kept_by: str = ""
    """What keeps the limit, where that depends on the host."""


class TenantView(Fact, kw_only=True, frozen=True):
    """A tenant as `insula tenant show` tells it."""

    name: str
    uid_base: int = 0
    """First of its 65,536 host uids."""
    created_at: float = 0.0
    uses: tuple[Use, ...] = ()


class Allowance(Protocol):
    """How verbs ask whether a tenant may use more."""

    def limit(self, tenant: str, resource: Resource) -> int | None:
        """Return the limit; None: there is none."""
        ...

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        """Refuse what would be too much.  Raises: QuotaExceeded with the figures."""
        ...


class Unlimited:
    """The allowance of a runtime without tenants' limits."""

    def limit(self, tenant: str, resource: Resource) -> int | None:
        return None

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        return

# SPDX-License-Identifier: Apache-2.0
"""What somebody may ask for in a container, as decided by the policy for them at this moment.  Pure.

`tenant/policy.py` makes it, `runtime/permitted.py` holds each wish against it after the last merge.
"""

from dataclasses import dataclass
from typing import Protocol

from insula.model.grant import Grant
from insula.model.record import ContainerRecord

DEFAULT_CAPABILITIES = frozenset(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL"
    " AUDIT_WRITE NET_ADMIN SYS_PTRACE IPC_LOCK SYS_NICE".split()
)
"""What every user may ask for: all of it counts within the container's own user namespace only."""
HOME = "~"
"""As a folder of a bind mount: the home of whoever asks."""
FIRST_HIGH_PORT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUser:
    """With whose rights a path of the host is opened."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    home: str = ""
    """Empty: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What may be asked for.  The fields' defaults are what nobody has granted anything gets."""

    is_everything: bool = False
    """An admin's: the fields below do not count."""
    binds: tuple[str, ...] = (HOME,)
    """Folders of the host below which may be mounted what `opens_as` may read itself."""
    opens_as: FileUser | None = None
    """None: no account of this host, so no bind mounts."""
    capabilities: frozenset[str] = DEFAULT_CAPABILITIES
    devices: frozenset[str] = frozenset()
    """Patterns of paths below /dev: devices of the host that may be opened."""
    low_ports: frozenset[int] = frozenset()
    """Ports below 1024 that may be published."""
    uplinks: frozenset[str] = frozenset()
    """Interfaces of the host that a network may be joined to."""
    subnets: frozenset[str] = frozenset()
    """CIDRs within which a network may lie, besides the host's pool and unique local IPv6 (RFC 4193)."""


EVERYTHING = Permit(is_everything=True)


class Permits(Protocol):
    """Where permits come from: `daemon/rights.py`."""

    def of_caller(self, grant: Grant) -> Permit:
        """Return what the one who asks now may ask for."""
        ...

    def of_creator(self, record: ContainerRecord) -> Permit:
        """Return what the one who made a container may ask for now: for starts without a caller."""
        ...

    def of_tenant(self, tenant: str) -> Permit:
        """Return what is permitted to anybody of a tenant: for a container that another host sends."""
        ...

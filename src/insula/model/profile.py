# SPDX-License-Identifier: Apache-2.0
"""What an application really uses of the kernel: recorded, compared, and what of it is enforced.  Pure.

Names only, no numbers: a profile recorded on one host, or processor, holds on another.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from insula.model.record import Fact

ProfileName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Enforce(StrEnum):
    """What happens to a system call that a profile lacks."""

    LOG = "log"
    """It is made, and the kernel's log tells it."""
    DENY = "deny"
    """It fails with EPERM."""


class Profile(Fact, kw_only=True, frozen=True):
    """Everything with how often it was seen."""

    name: ProfileName
    container: str = ""
    """Name of that it was recorded of."""
    recorded_at: float = 0.0
    """UTC seconds since the epoch, of its end."""
    seconds: float = 0.0
    calls: dict[str, int]
    """System calls by name, without those that were refused."""
    capabilities: dict[str, int]
    """Without `CAP_`."""
    written: dict[str, int]
    """Folders in which something was written, made, renamed or removed."""
    outgoing: dict[str, int]
    """As `192.0.2.1:443`; what was connected to."""
    listening: dict[str, int]
    """As `0.0.0.0:80`."""
    is_from_birth: bool = False
    """It was recorded from the container's start on: what a start needs is in it."""
    lost_events: int = 0
    """Paths and addresses may be missing then; calls and capabilities are counted without loss."""


class AppliedProfile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a container may do, as its specification carries it: it goes along to other hosts."""

    name: ProfileName
    calls: tuple[str, ...]
    capabilities: tuple[str, ...]
    enforce: Enforce = Enforce.DENY


class ApplyWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    profile: ProfileName
    enforce: Enforce = Enforce.DENY


class SaveWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """End a recording."""

    name: ProfileName


class Difference(Fact, kw_only=True, frozen=True):
    """What one profile has and another lacks: `calls mkdir`, `outgoing 192.0.2.1:443` …"""

    part: str
    thing: str
    is_added: bool


PARTS = ("calls", "capabilities", "written", "outgoing", "listening")


def differences(old: Profile, new: Profile) -> list[Difference]:
    """Return what the new profile has that the old lacks, and the other way round, in the order of PARTS."""
    found = []
    for part in PARTS:
        before, after = set(getattr(old, part)), set(getattr(new, part))
        found += [Difference(part=part, thing=each, is_added=False) for each in sorted(before - after)]
        found += [Difference(part=part, thing=each, is_added=True) for each in sorted(after - before)]
    return found


def seccomp_json(profile: Profile, *, architectures: tuple[str, ...]) -> dict[str, object]:
    """Return the profile's allow-list as the OCI runtime specification has it (config-linux.md, Seccomp).

    Container managers that take it: docker run --security-opt seccomp=FILE, podman, crun, runc, containerd.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": list(architectures),
        "syscalls": [{"names": sorted(profile.calls), "action": "SCMP_ACT_ALLOW"}],
    }

# SPDX-License-Identifier: Apache-2.0
"""What an application really uses of the kernel: recorded, compared, and what of it is enforced.  Pure.

Names only, no numbers: a profile recorded on one host, or processor, holds on another.
"""

import msgspec

from insula.model.record import Fact
from insula.model.spec import AppliedProfile, Enforce, ProfileName


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
    is_redacted: bool = False
    """Whether folders were hidden from who reads this (`tenant/redaction.py`)."""


class ApplyWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    profile: ProfileName
    enforce: Enforce = Enforce.DENY


class SaveWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """End a recording."""

    name: ProfileName


def applied(profile: Profile, *, enforce: Enforce) -> AppliedProfile:
    """Return what a container's specification carries of a profile."""
    return AppliedProfile(
        name=profile.name,
        calls=tuple(sorted(profile.calls)),
        capabilities=tuple(sorted(profile.capabilities)),
        enforce=enforce,
    )

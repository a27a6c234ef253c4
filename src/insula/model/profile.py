# SPDX-License-Identifier: Apache-2.0
"""What an application really uses of the kernel: recorded, compared, and what of it is enforced.  Pure.

Names only, no numbers: a profile recorded on one host, or processor, holds on another.  How one is read: `profile_text.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from insula.model.folders import merged_folders
from insula.model.peer import parse_peer
from insula.model.record import Fact
from insula.model.spec import AppliedProfile, Enforce, ProfileName

VERSION = 2
"""The first had neither paths that begin in a working directory nor protocols: only its calls and capabilities hold."""
UNNAMED = "unnamed"
"""Of what is not kept yet."""


class Profile(Fact, kw_only=True, frozen=True):
    """Everything with how often it was seen."""

    version: int = 1
    name: ProfileName
    container: str = ""
    """Name of that it was recorded of."""
    recorded_at: float = 0.0
    """UTC seconds since the epoch, of its end."""
    seconds: float = 0.0
    calls: dict[str, int]
    """System calls by name, without those that were refused."""
    capabilities: dict[str, int] | None
    """Without `CAP_`; None: the kernel could not tell (before Linux 6.14), so they are not limited."""
    programs: dict[str, int] | None = None
    """Files that were started, and their interpreters; None: recorded by an insula that did not look, so not limited."""
    written: dict[str, int]
    """Folders in which something was written, made, renamed or removed."""
    outgoing: dict[str, int]
    """What was connected to: see `peer.py`."""
    listening: dict[str, int]
    """As `0.0.0.0:80/tcp`."""
    refused_calls: dict[str, int] = msgspec.field(default_factory=dict)
    """What was refused while it was recorded: it stays so, and is no drift."""
    refused_capabilities: dict[str, int] = msgspec.field(default_factory=dict)
    refused_programs: dict[str, int] = msgspec.field(default_factory=dict)
    refused_folders: dict[str, int] = msgspec.field(default_factory=dict)
    """In which it may not write as the user that it is."""
    is_from_birth: bool = False
    """It was recorded from the container's start on: what a start needs is in it."""
    lost_events: int = 0
    """Paths and addresses may be missing then; calls and capabilities are counted without loss."""
    incomplete_because: str = ""
    """Why something was done while it was recorded, or wished to be, that is not in it; empty: nothing that is known of."""
    is_redacted: bool = False
    """Whether folders or programs were hidden from who reads this (`tenant/redaction.py`)."""


class ApplyWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    profile: ProfileName
    enforce: Enforce = Enforce.DENY


class Applied(Fact, kw_only=True, frozen=True):
    """What has come of holding a container to a profile, or letting it go."""

    is_running: bool
    """It counts from the next start on only."""
    is_root_writable: bool = False
    """The profile has something written in `/` itself: nothing is read-only then."""
    is_old: bool = False
    """Recorded by an insula whose folders and addresses cannot be enforced."""


class SaveWish(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """End a recording."""

    name: ProfileName


class Drift(Fact, kw_only=True, frozen=True):
    """Something that a container does, or tries to, and that its profile lacks."""

    part: str
    """calls, capabilities, programs, written, outgoing."""
    thing: str
    """As it would stand in the profile."""
    count: int
    first_at: float
    """UTC seconds since the epoch."""
    last_at: float
    command: str = ""
    """Of the thread that was the first; empty: the event that told it was lost."""
    is_refused: bool = False


class Drifts(Fact, kw_only=True, frozen=True):
    """What was found of a container since its last start."""

    drifts: tuple[Drift, ...]
    """The latest first."""
    not_remembered: int = 0
    """How often something was found that is not among them: there were too many."""
    lost_events: int = 0
    """Something may be missing then: they came faster than they were looked at."""


class ContainerDrifts(Fact, kw_only=True, frozen=True):
    """How often what kind of drift was found of a container."""

    id: str
    name: str
    refused: dict[str, int]
    """Part of the profile → how often, of what was refused."""
    done: dict[str, int]

    @classmethod
    def of(cls, container_id: str, name: str, drifts: Iterable[Drift]) -> "ContainerDrifts":
        """Add drifts up."""
        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for each in drifts:
            counts[each.is_refused][each.part] += each.count
        return cls(id=container_id, name=name, refused=dict(counts[True]), done=dict(counts[False]))


_COUNTED = (
    "calls", "written", "outgoing", "listening",
    "refused_calls", "refused_capabilities", "refused_programs", "refused_folders",
)  # fmt: skip


def joined(lives: Sequence[Profile]) -> Profile:
    """Return what was seen in one life or more of a container, the last one at the end, as one."""
    first, *others = lives
    for last in others:
        parts = {part: _sum(getattr(first, part), getattr(last, part)) for part in _COUNTED}
        first = msgspec.structs.replace(
            last,
            seconds=round(first.seconds + last.seconds, 3),
            capabilities=_sum_if_known(first.capabilities, last.capabilities),
            programs=_sum_if_known(first.programs, last.programs),
            is_from_birth=first.is_from_birth or last.is_from_birth,
            lost_events=first.lost_events + last.lost_events,
            **parts,
        )
    return first


def _sum(first: dict[str, int], last: dict[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(first) + Counter(last)).items()))


def _sum_if_known(first: dict[str, int] | None, last: dict[str, int] | None) -> dict[str, int] | None:
    return None if first is None or last is None else _sum(first, last)


def applied(profile: Profile, *, enforce: Enforce) -> AppliedProfile:
    """Return what a container's specification carries of a profile."""
    is_old = profile.version < VERSION
    return AppliedProfile(
        name=profile.name,
        calls=tuple(sorted(profile.calls)),
        capabilities=None if profile.capabilities is None else tuple(sorted(profile.capabilities)),
        programs=None if profile.programs is None else tuple(sorted(profile.programs)),
        written=None if is_old else merged_folders(profile.written),
        outgoing=None if is_old else leaving(profile.outgoing),
        serving=() if is_old else tuple(sorted(profile.listening)),
        refused_calls=tuple(sorted(profile.refused_calls)),
        refused_capabilities=tuple(sorted(profile.refused_capabilities)),
        refused_programs=tuple(sorted(profile.refused_programs)),
        refused_folders=tuple(sorted(profile.refused_folders)),
        enforce=enforce,
    )


def leaving(peers: dict[str, int]) -> tuple[str, ...]:
    """Return those that do not stay in the container.  Raises: ValueError for what is no address."""
    return tuple(sorted(each for each in peers if not parse_peer(each).is_own))

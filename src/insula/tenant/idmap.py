# SPDX-License-Identifier: Apache-2.0
"""Which host uids belong to which tenant.  Pure; the places of tenants are kept in `runtime/ledger.py`.

The ranges lie between what distributions give to people and services (below 2^29, systemd's container ranges
included) and the upper half, which some tools take for negative numbers.  One line in /etc/subuid and /etc/subgid
reserves all of them, so that useradd and podman give none of them away (ADR 18); what others hold of them by such
lines is left alone.
Sources: https://systemd.io/UIDS-GIDS; subuid(5).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from insula.model.errors import UidRangeExhausted

FIRST_UID = 0x2000_0000
RANGE_WIDTH = 65_536
MAX_TENANTS = 4096
LAST_UID = FIRST_UID + MAX_TENANTS * RANGE_WIDTH - 1


def uid_base(position: int) -> int:
    """Return the first host uid (and gid) of the tenant at that place.

    Raises: UidRangeExhausted.
    """
    if not 0 <= position < MAX_TENANTS:
        raise UidRangeExhausted(
            f"cannot give uids to tenant number `{position}`: there are ranges for {MAX_TENANTS} tenants",
        )
    return FIRST_UID + position * RANGE_WIDTH


def is_container_uid(uid: int) -> bool:
    """Tell whether a host uid is one that only programs in containers have."""
    return FIRST_UID <= uid <= LAST_UID


OWNER = "insula"
"""In whose name the ranges are reserved.  No account: nobody can use them by newuidmap."""
RESERVATION = f"{OWNER}:{FIRST_UID}:{MAX_TENANTS * RANGE_WIDTH}"


@dataclass(frozen=True, slots=True)
class Subordinate:
    """A line of /etc/subuid or /etc/subgid."""

    owner: str
    first: int
    count: int

    def overlaps(self, first: int, count: int) -> bool:
        return self.first < first + count and first < self.first + self.count


def parse_subordinates(text: str) -> tuple[Subordinate, ...]:
    """Read such a file; lines that are none are passed over, as shadow's own tools do."""
    found = []
    for line in text.splitlines():
        owner, *numbers = line.strip().split(":")
        if owner and not owner.startswith("#") and len(numbers) == 2 and all(n.isdecimal() for n in numbers):
            found.append(Subordinate(owner, int(numbers[0]), int(numbers[1])))
    return tuple(found)


def is_reserved(lines: Iterable[Subordinate]) -> bool:
    """Tell whether all ranges stand in insula's name."""
    return any(
        each.owner == OWNER and each.first <= FIRST_UID and each.first + each.count > LAST_UID
        for each in lines
    )


def holder_of(position: int, lines: Iterable[Subordinate]) -> str:
    """Return who else holds a part of a tenant's range by such a line; empty: nobody."""
    base = uid_base(position)
    others = (each for each in lines if each.owner != OWNER)
    return next((each.owner for each in others if each.overlaps(base, RANGE_WIDTH)), "")

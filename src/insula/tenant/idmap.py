# SPDX-License-Identifier: Apache-2.0
"""Which host uids belong to which tenant.  Pure; the order of tenants is kept in `runtime/ledger.py`.

The ranges lie between what distributions give to people and services (below 2^29, systemd's container ranges
included) and the upper half, which some tools take for negative numbers.
Source: https://systemd.io/UIDS-GIDS
"""

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

# SPDX-License-Identifier: Apache-2.0
"""How much a tenant may use: its own limits over those of everybody, and the refusal that tells the figures.  Pure.

Out of scope: measuring (`daemon/tenants.py`), and what the kernel enforces by itself (memory, processors, processes,
disk: there the program sees ENOMEM, EAGAIN, ENOSPC).
"""

from insula.model.errors import InvalidSpec, QuotaExceeded
from insula.model.quota import KINDS, MAX_WEIGHT, Quota, QuotaWish, Resource, Unit
from insula.model.units import format_size

DEFAULT_TENANT = "*"
"""Under this name stand the limits of everybody who has no own."""


def limit_of(resource: Resource, *quotas: Quota) -> int | None:
    """Return the limit that counts: that of the first of these which says anything of it.  None: there is none."""
    for each in quotas:
        if resource in each.limits:
            return each.limits[resource]
    return None


def refuse_more(resource: Resource, *, limit: int | None, used: int, more: int = 1) -> None:
    """Refuse what would exceed a limit.  Raises: QuotaExceeded with used, wished and limit."""
    if limit is None or used + more <= limit:
        return
    raise QuotaExceeded(
        f"cannot use more {KINDS[resource].words}: {show(resource, used)} used, {show(resource, more)} wished,"
        f" the limit is {show(resource, limit)}",
        hint=f"free some, or ask an administrator: insula tenant set TENANT {resource.value}=…",
        resource=resource.value,
        used=used,
        limit=limit,
    )


def show(resource: Resource, value: int) -> str:
    """Write a figure as people read it."""
    match KINDS[resource].unit:
        case Unit.BYTES:
            return format_size(value)
        case Unit.MILLI_CPUS:
            return f"{value / 1000:g}"
        case Unit.SECONDS:
            return f"{value} s"
        case Unit.PER_SECOND:
            return f"{value}/s"
        case Unit.COUNT:
            return str(value)


def check_limits(limits: dict[Resource, int | None]) -> None:
    """Refuse limits that make no sense.  Raises: InvalidSpec naming the resource and the least."""
    for resource, value in limits.items():
        least = KINDS[resource].least
        if value is not None and value < least:
            raise InvalidSpec(
                f"cannot limit `{resource.value}` to {show(resource, value)}",
                hint=f"at least {show(resource, least)}, or `none`",
            )
        if resource is Resource.WEIGHT and value is not None and value > MAX_WEIGHT:
            raise InvalidSpec(f"cannot set `weight` to {value}", hint=f"1 to {MAX_WEIGHT}; 100 is usual")


def changed(quota: Quota, wish: QuotaWish) -> Quota:
    """Return the limits after a change.  Raises: InvalidSpec."""
    check_limits(wish.limits)
    both = sorted(set(wish.limits) & set(wish.inherit))
    if both:
        raise InvalidSpec(f"cannot set `{both[0]}` and leave it to the default, too")
    kept = {name: value for name, value in quota.limits.items() if name not in wish.inherit}
    return Quota(limits={**kept, **wish.limits})

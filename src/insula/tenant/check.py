# SPDX-License-Identifier: Apache-2.0
"""May this principal do this?  The only place that turns a principal into a `Grant`.  Pure.

principal          OPEN  PEER  ADMIN  the rest, own tenant  the rest, another tenant
user                yes   no     no          yes             NotFound: it learns nothing
admin               yes   no    yes          yes             yes; `*` means all tenants
paired host         yes  yes     no           no              no
nobody (TLS)        yes   no     no           no              no
"""

from insula.model.errors import Denied, NotFound
from insula.model.grant import Action, Grant, Principal

EVERY_TENANT = "*"


def check(principal: Principal, action: Action, *, target_tenant: str = "") -> Grant:
    """Return the right to do the action within a tenant, the principal's own if none is named.

    Raises: Denied; NotFound for a tenant that is not the principal's.
    """
    match action:
        case Action.OPEN:
            return Grant(principal=principal, action=action, tenant=principal.tenant)
        case Action.PEER:
            _require(principal.is_peer and principal.name != "", principal, action=action)
            return Grant(principal=principal, action=action, tenant=EVERY_TENANT)
        case Action.ADMIN:
            _require(principal.is_admin and not principal.is_peer, principal, action=action)
        case _:
            _require(principal.uid is not None and not principal.is_peer, principal, action=action)
    tenant = target_tenant or principal.tenant
    if tenant != principal.tenant and not principal.is_admin:
        raise NotFound(f"cannot find tenant `{tenant}`")
    if tenant == EVERY_TENANT and action is Action.CREATE:
        raise Denied("cannot create for tenant `*`: choose one")
    return Grant(principal=principal, action=action, tenant=tenant)


def scope(grant: Grant) -> str | None:
    """Return the tenant to search in, None for all of them."""
    return None if grant.tenant == EVERY_TENANT else grant.tenant


_CURES = {
    Action.ADMIN: "only root and the users named by `insula daemon --admin` may",
    Action.PEER: "only a paired host may: insula host add",
}


def _require(holds: bool, principal: Principal, *, action: Action) -> None:  # noqa: FBT001 (the sentence reads so)
    if not holds:
        raise Denied(
            f"cannot let `{principal.name or 'an unknown peer'}` do this: it needs the right `{action.value}`",
            hint=_CURES.get(action, ""),
            action=action.value,
        )

# SPDX-License-Identifier: Apache-2.0
"""May this principal do this?  The only place that turns a principal into a `Grant`.  Pure.

              OPEN  READ LOGS TOKEN   CREATE ENTER DELETE CHECKPOINT   CONTROL MIGRATE   OPERATE   ADMIN   PEER
viewer          •    own  own  own      -                               -                 -         -       -
user            •    own  own  own      own                             own               -         -       -
operator        •    all  own  own      own                             all               •         -       -
admin           •    all  all  all      all                             all               •         all     -
paired host     •    -                  -                               -                 -         -       •
nobody (TLS)    •    -                  -                               -                 -         -       -

own: within the tenant of the principal; all: within any, `*` means all of them at once.  A token has its owner's rights
that are among its scopes, and within its own tenant only.  Who may not see a tenant is told that there is none.
"""

from insula.model.errors import Denied, NotFound, Unauthenticated
from insula.model.grant import EVERY_TENANT, Action, Grant, Kind, Principal, Role
from insula.tenant.identity import check_tenant_name

_VIEWER = frozenset({Action.OPEN, Action.READ, Action.LOGS, Action.TOKEN})
_USER = _VIEWER | {
    Action.CREATE,
    Action.CONTROL,
    Action.ENTER,
    Action.DELETE,
    Action.CHECKPOINT,
    Action.MIGRATE,
}
_OPERATOR = _USER | {Action.OPERATE}
_ADMIN = _OPERATOR | {Action.ADMIN}

#: Role → what it may do within its own tenant.
OWN: dict[Role, frozenset[Action]] = {
    Role.VIEWER: _VIEWER,
    Role.USER: _USER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _ADMIN,
}
#: Role → what it may do within every tenant.  Who has nothing here does not learn which tenants there are.
EVERYWHERE: dict[Role, frozenset[Action]] = {
    Role.VIEWER: frozenset(),
    Role.USER: frozenset(),
    Role.OPERATOR: frozenset({Action.READ, Action.CONTROL, Action.MIGRATE, Action.OPERATE}),
    Role.ADMIN: _ADMIN,
}
#: What is done to the host, and so to everybody's things, whichever tenant is named.
_WHOLE_HOST = frozenset({Action.PEER, Action.OPERATE})
#: What a token can be made for.
SCOPES = _ADMIN - {Action.OPEN, Action.TOKEN}


def check(principal: Principal, action: Action, *, target_tenant: str = "") -> Grant:
    """Return the right to do the action within a tenant, the principal's own if none is named.

    Raises: Denied; NotFound for a tenant that is not the principal's; BadRequest for what can be no tenant's name:
    tenants are made by what is made for them, and folders are called as they are.
    """
    if action is Action.OPEN:
        return Grant(principal=principal, action=action, tenant=principal.tenant)
    if action not in rights(principal):
        raise _denied(principal, action)
    if action in _WHOLE_HOST:
        return Grant(principal=principal, action=action, tenant=EVERY_TENANT)
    tenant = target_tenant or principal.tenant
    if tenant != principal.tenant and action not in rights_everywhere(principal):
        if principal.kind is Kind.TOKEN or not EVERYWHERE[principal.role]:
            hint = "all tenants are for operators and admins" if tenant == EVERY_TENANT else ""
            raise NotFound(f"cannot find tenant `{tenant}`", hint=hint)
        raise _denied(principal, action)
    if tenant == EVERY_TENANT and action is Action.CREATE:
        raise Denied("cannot create for tenant `*`: choose one")
    if tenant not in (principal.tenant, EVERY_TENANT):
        check_tenant_name(tenant)
    return Grant(principal=principal, action=action, tenant=tenant)


def rights(principal: Principal) -> frozenset[Action]:
    """Return what the principal may do in its own tenant."""
    if not principal.name:
        return frozenset()
    match principal.kind:
        case Kind.NOBODY:
            return frozenset()
        case Kind.HOST:
            return frozenset({Action.PEER})
        case Kind.UNIX if principal.uid is None:
            return frozenset()
        case Kind.UNIX | Kind.REMOTE:
            return OWN[principal.role]
        case Kind.TOKEN:
            return OWN[principal.role] & SCOPES & (principal.scopes or frozenset())


def rights_everywhere(principal: Principal) -> frozenset[Action]:
    """Return what the principal may do in every tenant."""
    if not principal.is_user or (principal.kind is Kind.TOKEN and principal.tenant != EVERY_TENANT):
        return frozenset()
    return EVERYWHERE[principal.role] & rights(principal)


_CURES = {
    Action.ADMIN: "only root, the users named by `insula daemon --admin` and those with role admin may",
    Action.OPERATE: "only operators and admins may: insula user set NAME --role operator",
    Action.PEER: "only a paired host may: insula host add",
}


def _denied(principal: Principal, action: Action) -> Denied:
    if principal.kind is Kind.NOBODY and action is not Action.PEER:
        return Unauthenticated(
            "cannot tell who calls: this insulad does not know the certificate, or there is none",
            hint="`--identity FILE` of a user that is not removed, or $INSULA_TOKEN",
            action=action.value,
        )
    if principal.kind is Kind.TOKEN:
        hint = f"make a token with --scope {action.value}" if action in SCOPES else "a token never may"
    else:
        hint = _CURES.get(action, f"the role `{principal.role.value}` does not have it")
    return Denied(
        f"cannot let `{principal.name or 'an unknown peer'}` do this: it needs the right `{action.value}`",
        hint=hint,
        action=action.value,
    )

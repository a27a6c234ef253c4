# SPDX-License-Identifier: Apache-2.0
"""Every role × action × tenant × scope, against a table that is written down here once more."""

import itertools

import pytest

from insula.model.errors import BadRequest, Denied, InsulaError, NotFound, Unauthenticated
from insula.model.grant import Action, Kind, Principal, Role, scope
from insula.tenant.check import SCOPES, check, rights, rights_everywhere

#: action → for viewer, user, operator, admin: `-` nothing, `o` the own tenant, `a` every tenant.
TABLE = {
    Action.OPEN: "oooo",
    Action.READ: "ooaa",
    Action.LOGS: "oooa",
    Action.TOKEN: "oooa",
    Action.CREATE: "-ooa",
    Action.ENTER: "-ooa",
    Action.DELETE: "-ooa",
    Action.CHECKPOINT: "-ooa",
    Action.CONTROL: "-oaa",
    Action.MIGRATE: "-oaa",
    Action.OPERATE: "--aa",
    Action.ADMIN: "---a",
    Action.PEER: "----",
}
ROLES = (Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN)
TENANTS = ("web", "other", "*")


def expected(role: Role, action: Action, *, tenant: str, scopes: frozenset[Action] | None = None) -> str:
    """Return what has to come out: ok, denied or hidden (as if there were no such tenant)."""
    word = TABLE[action][ROLES.index(role)]
    if action is Action.OPEN:
        return "ok"
    if word == "-" or (scopes is not None and action not in scopes):
        return "denied"
    if action is Action.OPERATE:
        return "ok"  # whichever tenant is named: it is done to the host
    if tenant == "web":
        return "ok"
    if scopes is not None:
        return "hidden"
    if word == "a":
        return "denied" if tenant == "*" and action is Action.CREATE else "ok"
    return "denied" if role in (Role.OPERATOR, Role.ADMIN) else "hidden"


def outcome(principal: Principal, action: Action, *, tenant: str) -> str:
    try:
        grant = check(principal, action, target_tenant=tenant)
    except NotFound:
        return "hidden"
    except Denied:
        return "denied"
    assert grant.principal == principal
    assert grant.tenant == ("*" if action is Action.OPERATE else tenant) or action is Action.OPEN
    return "ok"


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(Action)


@pytest.mark.parametrize("kind", [Kind.UNIX, Kind.REMOTE])
def test_each_role_does_exactly_what_the_table_says(kind: Kind) -> None:
    for role, action, tenant in itertools.product(ROLES, Action, TENANTS):
        principal = Principal(name="anna", tenant="web", role=role, kind=kind, uid=1000)
        assert outcome(principal, action, tenant=tenant) == expected(role, action, tenant=tenant), (
            role,
            action,
            tenant,
        )


def test_a_token_does_what_its_owner_may_and_its_scopes_name_in_its_tenant_only() -> None:
    for role, action, tenant, one in itertools.product(ROLES, Action, TENANTS, Action):
        scopes = frozenset({one}) & SCOPES
        token = Principal(name="anna", tenant="web", role=role, kind=Kind.TOKEN, scopes=scopes)
        wanted = expected(role, action, tenant=tenant, scopes=scopes)
        assert outcome(token, action, tenant=tenant) == wanted, (role, action, tenant, one)


def test_a_token_never_makes_tokens() -> None:
    assert Action.TOKEN not in SCOPES
    token = Principal(name="root", role=Role.ADMIN, kind=Kind.TOKEN, scopes=frozenset(Action))
    with pytest.raises(Denied):
        check(token, Action.TOKEN)


def test_an_admins_token_for_less_is_no_admin() -> None:
    def token(*scopes: Action) -> Principal:
        return Principal(name="root", role=Role.ADMIN, kind=Kind.TOKEN, scopes=frozenset(scopes))

    assert not token(Action.CREATE, Action.READ).is_admin
    assert token(Action.ADMIN).is_admin


def test_a_token_for_all_tenants_reaches_all_but_creates_in_one() -> None:
    token = Principal(
        name="root",
        tenant="*",
        role=Role.ADMIN,
        kind=Kind.TOKEN,
        scopes=frozenset({Action.READ, Action.CREATE}),
    )
    assert check(token, Action.READ).tenant == "*"
    assert check(token, Action.CREATE, target_tenant="web").tenant == "web"
    with pytest.raises(Denied):
        check(token, Action.CREATE)


@pytest.mark.parametrize(
    "principal",
    [
        Principal(name="", kind=Kind.NOBODY, role=Role.ADMIN),
        Principal(name="", kind=Kind.NOBODY, role=Role.ADMIN, uid=0),
        Principal(name="", kind=Kind.HOST, role=Role.ADMIN),
        Principal(name="", kind=Kind.UNIX, role=Role.ADMIN, uid=0),
        Principal(name="ghost", kind=Kind.UNIX, role=Role.ADMIN),
        Principal(name="", kind=Kind.REMOTE, role=Role.ADMIN),
        Principal(name="", kind=Kind.TOKEN, role=Role.ADMIN, scopes=frozenset(Action)),
        Principal(name="anna", kind=Kind.TOKEN, role=Role.ADMIN),
    ],
)
def test_who_has_not_shown_who_it_is_may_nothing_whatever_its_role(principal: Principal) -> None:
    assert not rights(principal)
    assert not rights_everywhere(principal)
    for action in set(Action) - {Action.OPEN}:
        with pytest.raises(InsulaError):
            check(principal, action)


def test_a_host_is_no_user_whatever_its_role() -> None:
    host = Principal(name="beta", kind=Kind.HOST, role=Role.ADMIN)
    assert rights(host) == {Action.PEER}
    assert not host.is_admin
    assert check(host, Action.PEER).tenant == "*"


def test_nobody_is_told_to_show_who_it_is() -> None:
    with pytest.raises(Unauthenticated):
        check(Principal(name="", kind=Kind.NOBODY), Action.READ)


def test_another_tenant_is_refused_in_the_same_words_whether_it_is_there_or_not() -> None:
    principal = Principal(name="anna", uid=1000)
    said = set()
    for tenant in ("bob", "none"):
        with pytest.raises(NotFound) as caught:
            check(principal, Action.READ, target_tenant=tenant)
        said.add(caught.value.message.replace(tenant, "…"))
    assert len(said) == 1
    with pytest.raises(NotFound) as caught:
        check(principal, Action.READ, target_tenant="*")
    assert caught.value.hint == "all tenants are for operators and admins"


def test_all_tenants_are_searched_only_for_who_may() -> None:
    admin = Principal(name="root", uid=0, role=Role.ADMIN)
    assert scope(check(admin, Action.READ, target_tenant="*")) is None
    assert scope(check(admin, Action.READ)) == "root"


@pytest.mark.parametrize("tenant", ["../x", "a/b", "A", "a" * 33])
def test_what_is_no_tenants_name_is_refused_in_no_other_words_than_any_tenant_to_who_sees_only_its_own(
    tenant: str,
) -> None:
    for action in (Action.CREATE, Action.READ, Action.DELETE):
        with pytest.raises(BadRequest):
            check(Principal(name="root", uid=0, role=Role.ADMIN), action, target_tenant=tenant)
        with pytest.raises(NotFound):
            check(Principal(name="anna", uid=1000), action, target_tenant=tenant)

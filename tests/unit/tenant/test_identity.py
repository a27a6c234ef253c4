# SPDX-License-Identifier: Apache-2.0
"""From uid, certificate or token to a principal: names that change hands, groups, ends of rights."""

import itertools
from dataclasses import replace as change
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from insula.model.errors import BadRequest, Denied, Unauthenticated
from insula.model.grant import TENANT_NAME, Action, Kind, Principal, Role
from insula.model.users import Origin, Standing, TokenRecord, UserRecord
from insula.runtime.people import People
from insula.tenant import identity
from insula.tenant.identity import Account, Known, of_remote, of_token, of_unix

NOW = 1_000_000.0
ALICE = Account(uid=1000, login="alice", gid=1000, groups=frozenset({1000, 50}))
NAMES = {1000: "alice", 50: "staff", 60: "b", 61: "a"}


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(
        directory=People(tmp_path / "db.sqlite"),
        admins=frozenset({"boss"}),
        now=NOW,
        group_name=lambda gid: NAMES.get(gid, ""),
    )


def save(known: Known, name: str, *, number: int | None = None, **more: object) -> UserRecord:
    fields = {"origin": Origin.UNIX, "tenant": name.removeprefix("@"), "created_at": NOW, **more}
    record = UserRecord(name=name, number=number, **fields)  # type: ignore[arg-type]
    known.directory.save_user(record)
    return record


@pytest.mark.parametrize(
    ("uid", "login", "name"),
    [
        (1005, "alice", "alice"),
        (1005, "uid1005", "uid1005"),
        (1006, "uid1005", "uid1006"),
        (1006, "uid01006", "uid1006"),
        (1006, "uidea", "uidea"),
        (1006, "Ä*", "uid1006"),
        (1006, "../x", "uid1006"),
        (1006, "", "uid1006"),
        (1006, "a" * 33, "uid1006"),
        (1006, None, "uid1006"),
    ],
)
def test_a_user_called_as_anothers_uid_is_not_taken_for_him(uid: int, login: str | None, name: str) -> None:
    assert identity.user_name(uid, login) == name


@given(st.text(), st.integers(0, 2**32 - 1))
def test_a_name_is_safe_as_a_folder_whatever_the_login(login: str, uid: int) -> None:
    assert TENANT_NAME.fullmatch(identity.user_name(uid, login))


@given(st.text(), st.text(), st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_two_uids_share_a_name_only_if_they_share_a_login(a: str, b: str, one: int, two: int) -> None:
    if one != two and a != b:
        assert identity.user_name(one, a) != identity.user_name(two, b)


def test_every_unix_user_has_its_own_tenant_and_root_and_named_admins_are_admins(known: Known) -> None:
    found = of_unix(ALICE, known)
    assert (found.name, found.tenant, found.role, found.uid) == ("alice", "alice", Role.USER, 1000)
    assert of_unix(Account(uid=0, login="root", gid=0), known).role is Role.ADMIN
    assert of_unix(Account(uid=77, login="boss", gid=77), known).role is Role.ADMIN
    assert known.directory.find_user("alice").standing is Standing.SEEN  # type: ignore[union-attr]
    assert known.directory.find_user("root") is None


def test_a_name_that_was_given_to_another_uid_is_refused(known: Known) -> None:
    of_unix(ALICE, known)
    with pytest.raises(Unauthenticated, match="not uid `1001`"):
        of_unix(change(ALICE, uid=1001), known)


def test_a_uid_that_was_given_to_another_name_is_refused(known: Known) -> None:
    of_unix(ALICE, known)
    for login in ("bob", None):
        with pytest.raises(Unauthenticated, match="was called `alice`"):
            of_unix(change(ALICE, login=login), known)


def test_an_admin_of_the_option_whose_name_was_given_away_is_refused(known: Known) -> None:
    of_unix(Account(uid=77, login="boss", gid=77), known)
    with pytest.raises(Unauthenticated):
        of_unix(Account(uid=78, login="boss", gid=78), known)


def test_a_new_user_called_as_a_shared_tenant_does_not_get_in(known: Known) -> None:
    save(known, "@devs", origin=Origin.GROUP, number=50, tenant="web")
    with pytest.raises(Unauthenticated, match="is other users'"):
        of_unix(Account(uid=1010, login="web", gid=1010), known)


def test_a_lent_uid_is_nobody_until_an_admin_adds_it(known: Known) -> None:
    lent = Account(uid=100004, login=None, lent_to="alice")
    with pytest.raises(Denied, match="lends it to `alice`"):
        of_unix(lent, known)
    assert known.directory.find_user("uid100004") is None
    save(known, "uid100004", number=100004, standing=Standing.SEEN)  # of before lent uids were refused
    with pytest.raises(Denied, match="lends it to `alice`"):
        of_unix(lent, known)
    save(known, "uid100004", number=100004)
    assert of_unix(lent, known).tenant == "uid100004"


def test_a_uid_without_account_that_nobody_is_lent_is_a_user(known: Known) -> None:
    assert of_unix(Account(uid=64711, login=None), known).name == "uid64711"


def test_a_remote_users_name_is_not_a_unix_users(known: Known) -> None:
    save(known, "alice", origin=Origin.REMOTE, fingerprint="ab")
    with pytest.raises(Unauthenticated):
        of_unix(ALICE, known)


def test_a_group_gives_tenant_and_role_to_members_that_no_admin_named(known: Known) -> None:
    save(known, "@staff", origin=Origin.GROUP, number=50, tenant="web", role=Role.OPERATOR)
    found = of_unix(ALICE, known)
    assert (found.name, found.tenant, found.role) == ("alice", "web", Role.OPERATOR)
    out = of_unix(change(ALICE, groups=frozenset({1000})), known)
    assert (out.tenant, out.role) == ("alice", Role.USER)
    save(known, "alice", number=1000, tenant="own", role=Role.VIEWER)
    assert of_unix(ALICE, known).tenant == "own"


def test_a_gid_that_was_given_to_another_group_gives_nothing(known: Known) -> None:
    save(known, "@staff", origin=Origin.GROUP, number=50, tenant="web", role=Role.ADMIN)
    found = of_unix(ALICE, change(known, group_name=lambda _gid: "games"))
    assert (found.tenant, found.role) == ("alice", Role.USER)


def test_the_first_of_several_groups_counts(known: Known) -> None:
    for number, name in ((60, "@b"), (61, "@a")):
        save(known, name, origin=Origin.GROUP, number=number, tenant=f"t{name[1]}")
    assert of_unix(change(ALICE, groups=frozenset({60, 61})), known).tenant == "ta"


@pytest.mark.parametrize(
    "end", [{"standing": Standing.REMOVED}, {"expires_at": NOW - 1}, {"expires_at": NOW}]
)
def test_a_right_that_has_ended_is_refused(known: Known, end: dict[str, object]) -> None:
    save(known, "alice", number=1000, **end)
    with pytest.raises(Denied, match="its right has ended"):
        of_unix(ALICE, known)
    with pytest.raises(Denied):
        of_remote(replace(save(known, "remote", origin=Origin.REMOTE), **end), known)


def test_a_groups_right_that_has_ended_gives_nothing(known: Known) -> None:
    save(known, "@staff", origin=Origin.GROUP, number=50, tenant="web", expires_at=NOW - 1)
    assert of_unix(ALICE, known).tenant == "alice"


# tokens


def token(**fields: object) -> TokenRecord:
    usual = {
        "id": "x",
        "owner": "alice",
        "uid": 1000,
        "tenant": "alice",
        "scopes": (Action.READ,),
        "expires_at": NOW + 1,
    }
    return TokenRecord(**{**usual, **fields})  # type: ignore[arg-type]


def test_a_token_is_its_owner_narrowed() -> None:
    owner = Principal(name="alice", uid=1000, role=Role.OPERATOR)
    found = of_token(token(container="c" * 64), owner)
    assert (found.kind, found.name, found.role, found.scopes) == (
        Kind.TOKEN,
        "alice",
        Role.OPERATOR,
        {Action.READ},
    )
    assert found.container == "c" * 64


def test_a_token_of_a_tenant_that_its_owner_left_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        of_token(token(tenant="web"), Principal(name="alice", role=Role.OPERATOR))
    assert of_token(token(tenant="web"), Principal(name="root", role=Role.ADMIN)).tenant == "web"


def test_only_the_whole_secret_within_its_time_is_taken() -> None:
    token_id, text, digest = identity.new_token()
    record = token(id=token_id)
    assert identity.token_id_of(text) == token_id
    identity.check_token(text, record, digest=digest, now=NOW)
    said = set()
    for wrong, now in (
        (text[:-1] + ("A" if text[-1] != "A" else "B"), NOW),
        (text, NOW + 1),
        (text[:-1], NOW),
        ("", NOW),
    ):
        with pytest.raises(Unauthenticated) as caught:
            identity.check_token(wrong, record, digest=digest, now=now)
        said.add(str(caught.value))
    assert len(said) == 1, "nobody learns which part was wrong"


def test_tokens_are_never_the_same() -> None:
    made = [identity.new_token() for _ in range(100)]
    assert all(one[1] != two[1] for one, two in itertools.pairwise(sorted(made)))


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a" * 33, "-a", "ä", "a\n", "*"])
def test_what_cannot_be_a_tenants_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        identity.check_tenant_name(name)

# SPDX-License-Identifier: Apache-2.0
"""Kept profiles: so many of each tenant, and what is no profile is refused."""

from pathlib import Path

import pytest

from insula.daemon.profile_files import ProfileFiles
from insula.daemon.tenants import Limits
from insula.model.errors import InvalidSpec, NameTaken, ProfileNotFound, QuotaExceeded
from insula.model.profile import Profile
from insula.model.quota import Quota, Resource
from insula.runtime import quotas
from insula.runtime.store import Store


def named(name: str) -> Profile:
    return Profile(name=name, calls={"read": 1}, capabilities={}, written={}, outgoing={}, listening={})


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(Store(tmp_path / "db.sqlite"), built_in=quotas.built_in())


@pytest.fixture
def files(tmp_path: Path, limits: Limits) -> ProfileFiles:
    return ProfileFiles(tmp_path / "profiles", limits)


def test_the_201st_profile_is_refused_and_others_have_their_own(files: ProfileFiles) -> None:
    for number in range(200):
        files.keep("alice", named(f"p{number}"))
    with pytest.raises(QuotaExceeded, match="200 used, 1 wished, the limit is 200"):
        files.keep("alice", named("more"))
    with pytest.raises(QuotaExceeded):
        files.keep_somehow("alice", named("p1"))
    assert files.count("alice") == 200
    files.keep("bob", named("more"))
    files.delete("alice", "p0")
    files.keep("alice", named("more"))


def test_an_administrator_sets_how_many(files: ProfileFiles, limits: Limits) -> None:
    limits.save("alice", Quota(limits={Resource.PROFILES: 1}))
    files.keep("alice", named("one"))
    with pytest.raises(QuotaExceeded):
        files.keep("alice", named("two"))


def test_a_name_is_kept_once_and_somehow_always(files: ProfileFiles) -> None:
    files.keep("alice", named("one"))
    with pytest.raises(NameTaken):
        files.keep("alice", named("one"))
    assert files.keep_somehow("alice", named("one")) == "one-2"
    assert files.names("alice") == ["one", "one-2"]
    assert files.read("alice", "one-2").name == "one-2"
    assert files.tenants() == ["alice"]


@pytest.mark.parametrize("name", ["none", "../alice/one", ""])
def test_what_is_not_there_is_not_found(files: ProfileFiles, name: str) -> None:
    files.keep("alice", named("one"))
    for ask in (files.read, files.delete):
        with pytest.raises(ProfileNotFound):
            ask("bob", name)


def test_an_altered_file_is_told(files: ProfileFiles, tmp_path: Path) -> None:
    files.keep("alice", named("one"))
    (tmp_path / "profiles/alice/one.json").write_text("{")
    with pytest.raises(InvalidSpec, match=r"one\.json"):
        files.read("alice", "one")

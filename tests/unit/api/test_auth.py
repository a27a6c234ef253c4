# SPDX-License-Identifier: Apache-2.0
"""What a real unix socket shows of its other end."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from insula.api import auth
from insula.model.errors import Denied, Unauthenticated
from insula.runtime.store import Store
from insula.tenant.idmap import FIRST_UID


def pair() -> tuple[socket.socket, SimpleNamespace]:
    ours, theirs = socket.socketpair()
    return theirs, SimpleNamespace(get_extra_info={"socket": ours}.get)


def test_the_kernel_tells_uid_and_groups_of_the_other_end() -> None:
    theirs, transport = pair()
    with theirs, transport.get_extra_info("socket"):
        found = auth.shown(transport, {})
    assert found.uid == os.geteuid()
    assert found.groups == {os.getegid(), *os.getgroups()}
    assert found.token == ""


@pytest.mark.parametrize("value", ["Basic eDp5", "Bearer", "insula_0123"])
def test_a_header_that_is_no_bearer_is_refused_and_not_passed_over(value: str) -> None:
    theirs, transport = pair()
    with theirs, transport.get_extra_info("socket"), pytest.raises(Unauthenticated):
        auth.shown(transport, {"Authorization": value})


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "https://alpha:7443.evil.example", "alpha:7443"]
)
def test_a_page_of_another_site_is_refused(origin: str) -> None:
    theirs, transport = pair()
    with theirs, transport.get_extra_info("socket"):
        with pytest.raises(Denied, match="another site"):
            auth.shown(transport, {"Origin": origin, "Host": "alpha:7443"})
        assert (
            auth.shown(transport, {"Origin": "https://alpha:7443", "Host": "alpha:7443"}).uid == os.geteuid()
        )


def test_a_containers_uid_is_refused_even_with_a_token(tmp_path: Path) -> None:
    store = Store(tmp_path / "db.sqlite")
    for token in ("", "insula_0123456789ab_" + "x" * 43):
        with pytest.raises(Denied, match="belongs to a container"):
            auth.identify(
                auth.Shown(uid=FIRST_UID + 5, token=token), directory=store, admins=frozenset({"root"})
            )
    store.close()


def test_no_certificate_is_nobody_and_an_unknown_one_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "db.sqlite")
    for fingerprint in ("", "ab" * 32):
        found = auth.identify(auth.Shown(fingerprint=fingerprint), directory=store, admins=frozenset())
        assert found == auth.NOBODY
    store.close()

# SPDX-License-Identifier: Apache-2.0
"""Who a uid is: each tenant name belongs to one uid, whatever users are called."""

import pwd
from types import SimpleNamespace

import pytest

from insula.api import auth


@pytest.mark.parametrize(
    ("uid", "called", "tenant"),
    [
        (1005, "alice", "alice"),
        (1005, "uid1005", "uid1005"),
        (1006, "uid1005", "uid1006"),
        (1006, "uid01006", "uid1006"),
        (1006, "uidea", "uidea"),
        (1006, "Ä*", "uid1006"),
        (1006, None, "uid1006"),
    ],
)
def test_a_user_called_as_anothers_uid_is_not_taken_for_him(
    monkeypatch: pytest.MonkeyPatch, uid: int, called: str | None, tenant: str
) -> None:
    def getpwuid(_uid: int) -> SimpleNamespace:
        if called is None:
            raise KeyError
        return SimpleNamespace(pw_name=called)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    assert auth.tenant_name(uid) == tenant
    assert auth.user(uid, admins=frozenset({"uid1005"})).is_admin == (tenant == "uid1005")

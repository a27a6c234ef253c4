# SPDX-License-Identifier: Apache-2.0
"""Uid ranges; the audit file."""

import itertools
import json
import stat
from pathlib import Path

import pytest

from insula.model.errors import UidRangeExhausted
from insula.model.grant import Action, Kind, Principal, Role
from insula.tenant import idmap
from insula.tenant.audit import Audit
from insula.tenant.audit_entry import Entry

ALICE = Principal(name="alice", uid=1000)
ROOT = Principal(name="root", uid=0, role=Role.ADMIN)
BETA = Principal(name="beta", kind=Kind.HOST)
NOBODY = Principal(name="", kind=Kind.NOBODY)


def test_uid_ranges_do_not_overlap_and_end() -> None:
    bases = [idmap.uid_base(position) for position in range(idmap.MAX_TENANTS)]
    assert all(later - earlier == idmap.RANGE_WIDTH for earlier, later in itertools.pairwise(bases))
    assert idmap.is_container_uid(bases[0])
    assert idmap.is_container_uid(bases[-1] + 65_535)
    assert not idmap.is_container_uid(bases[-1] + 65_536)
    assert not idmap.is_container_uid(1000)
    for position in (-1, idmap.MAX_TENANTS):
        with pytest.raises(UidRangeExhausted):
            idmap.uid_base(position)


def test_the_audit_appends_lines_only_root_can_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for result in ("ok", "denied"):
        audit = Audit(path)
        audit.record(
            Entry(
                principal=ALICE, action=Action.DELETE, method="DELETE", path="/v1/containers/x", result=result
            )
        )
        audit.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["who"], line["uid"], line["result"]) for line in lines] == [
        ("alice", 1000, "ok"),
        ("alice", 1000, "denied"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

# SPDX-License-Identifier: Apache-2.0
"""Which uids are lent, as the file says at the moment."""

import os
from pathlib import Path

from insula.tenant.subordinates import Lent


def test_a_line_lends_its_uids_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("# who:first:count\nalice:100000:65536\n1001:165536:10\nnonsense\n")
    lent = Lent(file)
    found = {uid: lent.holder_of(uid) for uid in (0, 1000, 99999, 100000, 165535, 165536, 165545, 165546)}
    assert {uid: who for uid, who in found.items() if who} == {
        100000: "alice", 165535: "alice", 165536: "1001", 165545: "1001",
    }  # fmt: skip


def test_a_file_that_changes_counts_at_once(tmp_path: Path) -> None:
    file, new = tmp_path / "subuid", tmp_path / "subuid+"
    lent = Lent(file)
    assert lent.holder_of(100004) == ""
    file.write_text("alice:100000:65536\n")
    assert lent.holder_of(100004) == "alice"
    new.write_text("berta:100000:65536\n")  # as long, and by rename, as useradd does
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.rename(file)
    assert lent.holder_of(100004) == "berta"
    file.unlink()
    assert lent.holder_of(100004) == ""

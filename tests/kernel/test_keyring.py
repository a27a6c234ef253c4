# SPDX-License-Identifier: Apache-2.0
"""Session keyrings of this kernel, and of containers."""

import os
from pathlib import Path

import pytest

from insula.kernel import keyring
from spawned import UID_BASE, Spawned


def _keys_of(uid: int) -> int:
    # proc(5), /proc/key-users: "uid: usage nkeys/nikeys qnkeys/maxkeys qnbytes/maxbytes"
    for line in Path("/proc/key-users").read_text().splitlines():
        owner, _, rest = line.partition(":")
        if int(owner) == uid:
            return int(rest.split()[1].split("/")[0])
    return 0


def test_each_child_that_joins_has_a_keyring_of_its_own() -> None:
    receive, send = os.pipe()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                keyring.join_new_session()
                os.write(send, keyring.session_id().to_bytes(8, "little"))
            finally:
                os._exit(0)
        children.append(child)
    os.close(send)
    for child in children:
        os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as file:
        said = file.read()
    ids = {int.from_bytes(said[i : i + 8], "little") for i in (0, 8)}
    assert len(said) == 16 and len(ids) == 2


@pytest.mark.skipif(not Path("/proc/key-users").exists(), reason="this kernel has no keys")
def test_a_container_holds_a_keyring_in_its_own_name(host: Spawned) -> None:
    before = _keys_of(UID_BASE)
    host.start("/bin/sleep", "1000")
    assert _keys_of(UID_BASE) > before

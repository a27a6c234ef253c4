# SPDX-License-Identifier: Apache-2.0
"""Session keyrings of this kernel, and of containers."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from insula.kernel import keyring
from spawned import UID_BASE, Spawned
from waiting import wait_until


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
    def has_one_more() -> bool:
        """Unless those of containers that have ended go at this moment."""
        before = _keys_of(UID_BASE)
        host.start("/bin/sleep", "1000")
        return _keys_of(UID_BASE) > before

    wait_until(has_one_more, what="a keyring of its own")


@pytest.mark.skipif(not Path("/proc/key-users").exists(), reason="this kernel has no keys")
def test_one_tenant_may_have_more_containers_than_a_user_has_keys_by_default(host: Spawned) -> None:
    assert host.process.poll() is None
    refused: list[int] = []
    waiting = []
    parent, child = os.pipe()
    keyring.join_new_session()  # as the spawner does
    for _ in range(250):
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(child)
            _hold_keyring(send, parent)
        os.close(send)
        with os.fdopen(receive, "rb") as file:
            refused += file.read()
        waiting.append(pid)
    os.close(child)
    os.close(parent)
    for pid in waiting:
        os.waitpid(pid, 0)
    assert not refused, f"{len(refused)} of 250: {os.strerror(refused[0])}"


def _hold_keyring(send: int, until_closed: int) -> NoReturn:
    try:
        os.setresuid(UID_BASE, UID_BASE, UID_BASE)
        keyring.join_new_session()
    except OSError as error:
        os.write(send, bytes((error.errno or 255,)))
    os.close(send)
    os.read(until_closed, 1)
    os._exit(0)

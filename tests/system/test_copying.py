# SPDX-License-Identifier: Apache-2.0
"""`insula cp` is done at the cost of the container's tenant: in a process of its own, in the tenant's cgroup."""

import contextlib
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hosted import Host, Person, charged_tenants, wait_until

WORKER = "archive_worker"
BIG_MIB = 64
"""More than all the buffers between a worker and a client that does not read."""


def groups(host: Host) -> list[str]:
    """The cgroups of copies."""
    return [each for each in host.remains() if "/copy-" in each]


@contextmanager
def upload(alice: Person) -> Iterator[socket.socket]:
    """A copy into container c whose tar does not go on."""
    entry = tarfile.TarInfo("big")
    entry.size = 1 << 33
    piece = entry.tobuf(tarfile.GNU_FORMAT) + bytes(512)
    with alice.connected() as connection:
        connection.sendall(b"PUT /v1/containers/c/archive?path=/tmp HTTP/1.1\r\nHost: x\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(piece), piece))
        yield connection


@contextmanager
def download(alice: Person) -> Iterator[socket.socket]:
    """A copy out of container c that nobody reads."""
    alice("exec", "c", "dd", "if=/dev/zero", "of=/big", "bs=1M", f"count={BIG_MIB}")
    with alice.asking("GET", "/v1/containers/c/archive?path=/big") as connection:
        yield connection


@pytest.mark.parametrize("copy", [upload, download])
def test_it_is_done_in_the_tenants_cgroup_and_leaves_none(
    host: Host, alice: Person, copy: "type[contextlib.AbstractContextManager[socket.socket]]"
) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    with copy(alice):  # type: ignore[call-arg]
        theirs = {f"tenant-{alice.tenant}"}
        wait_until(
            lambda: charged_tenants(host, WORKER) == theirs, what=lambda: str(charged_tenants(host, WORKER))
        )
        assert groups(host)
    wait_until(lambda: not charged_tenants(host, WORKER) and not groups(host), what=lambda: str(groups(host)))


def test_nothing_of_it_is_left_when_insulad_was_killed(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    with upload(alice):
        wait_until(lambda: bool(charged_tenants(host, WORKER)), what="a copy under way")
        host.kill()
        host.start()
    assert groups(host) == []
    assert charged_tenants(host, WORKER) == set()
    assert alice.look("c")["status"] == "running"


def test_a_copy_is_among_the_processes_that_its_tenant_may_have(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    said = ""

    def is_refused() -> bool:
        """With as many as it has now; what was there for a moment leaves room for one more."""
        nonlocal said
        uses = alice.json("tenant", "show", "--format", "json")
        used = next(each["used"] for each in uses if each["resource"] == "pids")
        host.root("tenant", "set", alice.tenant, f"pids={used}")
        said = alice.give("cp", "c:/etc/motd", "-").err
        return "the tenant may have no more processes" in said

    try:
        wait_until(is_refused, what=lambda: f"a refusal: {said}")
    finally:
        host.root("tenant", "set", alice.tenant, "pids=default")

# SPDX-License-Identifier: Apache-2.0
"""Uploads are unpacked at their sender's cost: in a process of its own, in the tenant's cgroup."""

import io
import tarfile
import zlib
from collections.abc import Iterator

from hosted import Host, Person, charged_tenants, wait_until


def members(host: Host) -> set[str]:
    """The tenants in whose cgroups an unpacking process is."""
    return charged_tenants(host, "unpack_worker")


def pieces() -> Iterator[bytes]:
    """A gzip of a file of zeros that goes on for long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    entry = tarfile.TarInfo("zeros")
    entry.size = 8 << 30
    yield packer.compress(entry.tobuf(tarfile.GNU_FORMAT)) + packer.flush(zlib.Z_SYNC_FLUSH)
    while True:
        yield packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)


def test_it_is_done_in_the_tenants_cgroup_and_leaves_none(host: Host, alice: Person) -> None:
    head = b"POST /v1/images/import?name=zeros HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    more = pieces()
    with alice.connected() as connection:
        connection.sendall(head)

        def is_seen() -> bool:
            piece = next(more)
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            return members(host) == {f"tenant-{alice.tenant}"}

        wait_until(is_seen, what=lambda: f"unpacked by alice: {members(host)}")
    wait_until(lambda: not members(host) and not host.remains(), what=lambda: f"gone: {host.remains()}")


def test_what_is_refused_there_is_told(alice: Person) -> None:
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    done = alice.give("image", "import", "-", "bad", data=text.getvalue())
    assert done.code != 0
    assert "outside" in done.err


def test_an_image_is_as_it_was_sent(alice: Person, image: bytes) -> None:
    alice("image", "import", "-", "again", data=image)
    assert alice("run", "--rm", "again", "echo", "hello") == "hello"

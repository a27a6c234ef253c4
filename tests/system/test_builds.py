# SPDX-License-Identifier: Apache-2.0
"""A build costs the tenant that asked for it: its processes stand in the tenant's cgroup and ids, and end with their time.

In mmdebstrap's place stands a program that does what a package's name says, so that a build takes and uses what it should.
"""

import contextlib
import fcntl
import json
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hosted
from hosted import Host, Person, wait_until

PROGRAM = r"""#!/usr/bin/python3 -I
import os, signal, subprocess, sys, tarfile, tempfile
asked = next((word.partition("=")[2] for word in sys.argv if word.startswith("--include=")), "")
with open(os.path.join(tempfile.mkdtemp(), "root"), "wb") as root:
    if asked == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        signal.pause()
    if asked == "memory":
        held = [bytes([1]) * (1 << 20) for _ in range(256)]
    if asked == "disk":
        for _ in range(256):
            root.write(bytes([1]) * (1 << 20))
    if asked == "endless":
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            entry = tarfile.TarInfo("zeros")
            entry.size = 1 << 40
            tar.addfile(entry, open("/dev/zero", "rb"))
    if asked == "whoami":
        ids = " ".join(open("/proc/self/uid_map").read().split())
        sys.exit(f"E: uid {os.getuid()}, pid {os.getpid()}, ids {ids}")
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    entry = tarfile.TarInfo("etc")
    entry.type = tarfile.DIRTYPE
    tar.addfile(entry)
"""


@pytest.fixture(scope="module")
def module_host(program: Path, image: bytes) -> Iterator[Host]:
    with hosted.host(program, image, kind=_WithProgram) as made:
        yield made


class _WithProgram(Host):
    def prepare(self) -> None:
        place = self.folder / "bin/mmdebstrap"
        place.parent.mkdir(mode=0o755)
        place.write_text(PROGRAM, encoding="utf-8")
        place.chmod(0o755)

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{self.folder}/bin", prepend=os.pathsep)
            super().start()


@pytest.fixture(autouse=True)
def without_limits(host: Host) -> Iterator[None]:
    yield
    for each in host.root.ask("GET", "/v1/operations?tenant=*")[1]:
        if each["status"] == "running":
            cancel(host.root, each["id"], query=f"?tenant={each['tenant']}")
    for tenant in (host.alice.tenant, host.bob.tenant):
        host.root("tenant", "set", tenant, *(f"{each}=default" for each in ("memory", "disk", "build-time")))


def begin(person: Person, what: str) -> tuple[int, Any]:
    wish = {"name": f"x-{what}", "packages": [what]}
    return person.ask("POST", "/v1/images/build", body=json.dumps(wish).encode())


def begun(person: Person, what: str) -> str:
    status, operation = begin(person, what)
    assert status == 202, operation
    return str(operation["id"])


def end_of(person: Person, operation: str, *, query: str = "") -> Any:
    seen: list[Any] = []

    def is_over() -> bool:
        status, answer = person.ask("GET", f"/v1/operations/{operation}{query}")
        assert status == 200, answer
        seen[:] = [answer]
        return bool(answer["status"] != "running")

    wait_until(is_over, what=lambda: f"it ends: {seen}")
    return seen[0]


def cancel(person: Person, operation: str, *, query: str = "") -> None:
    status, answer = person.ask("DELETE", f"/v1/operations/{operation}{query}")
    assert status < 300, answer
    assert end_of(person, operation, query=query)["status"] == "cancelled"


def processes(host: Host) -> dict[int, str]:
    """Pid → control groups of every process that a build of this host's has started."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{host.folder}/bin".encode() in each.read_bytes():
                words = (each.parent / "cmdline").read_bytes()
                if b"mmdebstrap" in words or b"sleep\x001000" in words:
                    found[int(each.parent.name)] = (each.parent / "cgroup").read_text()
    return found


def hang(person: Person, *, builds: int = 1) -> list[str]:
    """Begin builds that never end; returns their operations when all their processes are there."""
    operations = [begun(person, "hang") for _ in range(builds)]
    host = person.host
    wait_until(lambda: sleepers(host) == builds, what=lambda: f"they are there: {list(processes(host))}")
    return operations


def unpackers(host: Host) -> list[int]:
    groups = Path("/proc").glob("[0-9]*/cgroup")
    pids = [int(each.parent.name) for each in groups if f"{host.cgroup}/" in _text(each)]
    return [each for each in pids if b"unpack_worker" in _words(each)]


def has_its_pipe_full(pid: int) -> bool:
    descriptor = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        (waiting,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
        return bool(2 * waiting > fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ))
    finally:
        os.close(descriptor)


def sleepers(host: Host) -> int:
    return sum(b"sleep" in _words(pid) for pid in processes(host))


def _words(pid: int) -> bytes:
    return _text(Path(f"/proc/{pid}/cmdline")).encode()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def wait_gone(host: Host) -> None:
    wait_until(lambda: not processes(host), what=lambda: f"gone: {list(processes(host))}")
    wait_until(lambda: not host.remains(), what=lambda: f"gone: {host.remains()}")
    state = host.folder / "state"
    leftovers = [*state.glob("builds/*"), *state.glob("tenants/*/disk/builds/*")]
    wait_until(lambda: not any(each.exists() for each in leftovers), what=lambda: f"gone: {leftovers}")


def test_its_processes_stand_in_the_tenants_groups_and_end_with_it(host: Host, alice: Person) -> None:
    (operation,) = hang(alice)
    for pid, groups in processes(host).items():
        lines = {line.split(":")[1]: line.split(":")[2] for line in groups.splitlines()}
        for controller in ("", "memory", "pids"):
            if controller in lines:
                assert f"/tenant-{alice.tenant}/build-" in lines[controller], (pid, lines)
    cancel(alice, operation)
    wait_gone(host)


def test_it_is_root_of_the_tenants_ids_alone_and_sees_no_other_process(host: Host, alice: Person) -> None:
    _, tenant = alice.ask("GET", f"/v1/tenants/{alice.tenant}")
    said = end_of(alice, begun(alice, "whoami"))["error"]["message"]
    assert said.endswith(f"E: uid 0, pid 1, ids 0 {tenant['uid_base']} 65536"), said
    wait_gone(host)


def test_it_has_no_more_memory_than_its_tenant(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "memory=64m")
    error = end_of(alice, begun(alice, "memory"))["error"]
    assert error["code"] == "limit_refused", error
    assert "memory" in error["message"]
    wait_gone(host)


def test_what_it_writes_counts_against_its_tenants_disk(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "disk=64m")
    error = end_of(alice, begun(alice, "disk"))["error"]
    assert error["code"] == "disk_full", error
    wait_gone(host)


def test_it_ends_when_its_time_is_over(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "build-time=1")
    error = end_of(alice, begun(alice, "hang"))["error"]
    assert error["code"] == "quota_exceeded", error
    assert "time of a build" in error["message"] and "the limit is 1" in error["message"]
    wait_gone(host)


def test_it_ends_also_while_its_archive_is_not_unpacked(host: Host, alice: Person) -> None:
    operation = begun(alice, "endless")
    wait_until(lambda: bool(unpackers(host)), what="its archive is unpacked")
    for each in unpackers(host):
        os.kill(each, signal.SIGSTOP)
    wait_until(lambda: all(map(has_its_pipe_full, unpackers(host))), what="insulad waits for it")
    cancel(alice, operation)
    wait_gone(host)


def test_a_third_one_at_once_is_refused_with_the_figure(host: Host, alice: Person, bob: Person) -> None:
    operations = hang(alice, builds=2)
    status, answer = begin(alice, "hang")
    assert (status, answer["error"]["code"]) == (507, "quota_exceeded"), answer
    assert "2 of 2 are under way" in answer["error"]["message"]
    assert end_of(bob, begun(bob, "fine"))["status"] == "done"
    for each in operations:
        cancel(alice, each)
    assert end_of(alice, begun(alice, "fine"))["status"] == "done"
    wait_gone(host)


def test_nothing_of_it_outlives_an_insulad_that_was_killed(host: Host, alice: Person) -> None:
    (operation,) = hang(alice)
    host.kill()
    wait_until(lambda: not processes(host), what=lambda: f"gone: {list(processes(host))}")
    host.start()
    assert end_of(alice, operation)["status"] == "failed"
    wait_gone(host)


def test_what_an_insulad_left_is_ended_by_the_next(host: Host, alice: Person) -> None:
    # The process above them stands still, so that it cannot end them itself.
    hang(alice)
    above = next(pid for pid in processes(host) if b"build_worker" in _words(pid))
    os.kill(above, signal.SIGSTOP)
    host.kill()
    assert sleepers(host) == 1
    host.start()
    wait_gone(host)

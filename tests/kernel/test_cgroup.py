# SPDX-License-Identifier: Apache-2.0
"""Groups on this machine's own hierarchies."""

import errno
import os
import select
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.kernel.cgroup import Device, Group, Hierarchies, Limits, delete_parent
from waiting import DEADLINE_S

MEBIBYTE = 1 << 20


def soon() -> float:
    return time.monotonic() + DEADLINE_S


@pytest.fixture
def group() -> Iterator[Group]:
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    made = Group(hierarchies, parent, "one")
    made.create()
    yield made
    made.kill()
    made.delete(soon())
    assert not made.exists()
    delete_parent(hierarchies, parent)


def start(group: Group, act: Callable[[], None]) -> int:
    """Start a child that acts as soon as it is in the group."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(send)
            os.read(receive, 1)
            act()
        finally:
            os._exit(1)
    os.close(receive)
    group.attach(child)
    os.close(send)
    return child


def spin() -> None:
    while True:
        pass


def pause() -> None:
    select.poll().poll()


def end(group: Group, child: int) -> int:
    group.kill()
    group.wait_empty(soon())
    return os.waitpid(child, 0)[1]


def test_limits_are_read_back(group: Group) -> None:
    group.set_limits(
        Limits(memory_bytes=64 * MEBIBYTE, pids=7, cpu_quota_us=50_000, cpu_weight=200, cpuset="0")
    )
    stats = group.stats()
    assert (stats.memory_limit_bytes, stats.pids_limit) == (64 * MEBIBYTE, 7)
    group.set_limits(Limits())
    stats = group.stats()
    assert (stats.memory_limit_bytes, stats.pids_limit) == (None, None)


def test_a_limit_below_the_use_is_refused_by_name(group: Group) -> None:
    receive, send = os.pipe()

    def hold() -> None:
        held = bytearray(b"x" * (32 * MEBIBYTE))
        os.write(send, b"%d" % len(held))
        pause()

    child = start(group, hold)
    os.read(receive, 16)
    with pytest.raises(OSError, match="busy") as caught:
        group.set_limits(Limits(memory_bytes=4 * MEBIBYTE))
    assert caught.value.errno == errno.EBUSY and "4194304" in str(caught.value.filename)
    end(group, child)
    os.close(receive)
    os.close(send)


def test_a_memory_hog_is_killed_and_counted(group: Group) -> None:
    group.set_limits(Limits(memory_bytes=32 * MEBIBYTE, memory_swap_bytes=32 * MEBIBYTE))
    child = start(group, lambda: print(len(b"x" * (128 * MEBIBYTE))))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -9
    assert group.stats().oom_kills == 1


def test_one_process_too_many_is_refused(group: Group) -> None:
    group.set_limits(Limits(pids=1))

    def child() -> None:
        try:
            os.fork()
        except BlockingIOError:
            os._exit(42)

    assert os.waitstatus_to_exitcode(os.waitpid(start(group, child), 0)[1]) == 42


def test_frozen_processes_stand_and_thawed_ones_go_on(group: Group) -> None:
    receive, send = os.pipe()
    os.set_blocking(receive, False)

    def talk() -> None:
        while True:
            os.write(send, b"x" * 4096)

    child = start(group, talk)
    assert select.select([receive], [], [], DEADLINE_S)[0]
    group.freeze()
    group.wait_frozen(soon())
    assert group.is_frozen()
    while select.select([receive], [], [], 0.05)[0]:
        os.read(receive, 1 << 20)
    before = group.stats().cpu_usage_us
    assert not select.select([receive], [], [], 0.1)[0], "a frozen process wrote"
    assert group.stats().cpu_usage_us == before
    group.thaw()
    assert select.select([receive], [], [], DEADLINE_S)[0], "a thawed process wrote nothing"
    end(group, child)
    os.close(receive)
    os.close(send)


def test_frozen_processes_die(group: Group) -> None:
    child = start(group, pause)
    group.freeze()
    group.wait_frozen(soon())
    assert os.waitstatus_to_exitcode(end(group, child)) == -9
    assert group.pids() == []


def test_time_that_passes_is_told(group: Group) -> None:
    child = start(group, pause)
    with pytest.raises(TimeoutError):
        group.wait_empty(time.monotonic() + 0.01)
    with pytest.raises(OSError, match="busy"):
        group.delete(time.monotonic())
    end(group, child)


def test_statistics_are_plausible(group: Group) -> None:
    group.set_limits(Limits(cpu_quota_us=10_000))
    child = start(group, spin)
    deadline = soon()
    while group.stats().throttled_us == 0 and time.monotonic() < deadline:
        select.poll().poll(5)
    stats = group.stats()
    assert group.pids() == [child]
    assert stats.pids == 1 and stats.throttled_us > 0 and 0 < stats.cpu_usage_us < 10_000_000
    end(group, child)


@pytest.fixture(params=["v1", "v2"])
def device_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """With the v1 controller `devices`, and as on a host without it."""
    hierarchies = Hierarchies.detect()
    if request.param == "v1" and hierarchies.find_v1("devices") is None:
        pytest.skip("cgroup v1 controller `devices` is missing")
    if request.param == "v2":
        v1 = tuple(
            each._replace(controllers=frozenset(each.controllers - {"devices"})) for each in hierarchies.v1
        )
        hierarchies = hierarchies._replace(v1=v1)
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    made = Group(hierarchies, parent, "one")
    made.create()
    yield made
    made.kill()
    made.delete(soon())
    delete_parent(hierarchies, parent)


def test_only_harmless_devices_are_left(device_group: Group, tmp_path: Path) -> None:
    device_group.limit_devices()
    device_group.limit_devices()  # of a group that was there already

    def child() -> None:
        for name in ("null", "zero", "full", "random", "urandom"):
            os.close(os.open(f"/dev/{name}", os.O_RDWR))
        os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        os.mknod(tmp_path / "kmsg", stat.S_IFCHR | 0o600, os.makedev(1, 11))
        os.mknod(
            tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(1, 3)
        )  # the number of null, but a block device
        refused = 0
        for path, flags in (
            ("/dev/kmsg", os.O_RDONLY),
            ("/dev/kmsg", os.O_WRONLY),
            (tmp_path / "kmsg", os.O_RDONLY),
            (tmp_path / "disk", os.O_RDONLY),
        ):
            try:
                os.open(path, flags)
            except PermissionError:
                refused += 1
        os._exit(40 + refused)

    assert os.waitstatus_to_exitcode(os.waitpid(start(device_group, child), 0)[1]) == 44


def test_more_devices_may_be_opened_as_far_as_they_are_allowed(device_group: Group, tmp_path: Path) -> None:
    device_group.limit_devices([Device("c", 1, 11, "w"), Device("b", 240, 3, "rm")])

    def child() -> None:
        os.mknod(
            tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(240, 3)
        )  # of no driver: no module comes for it
        os.close(os.open("/dev/kmsg", os.O_WRONLY))
        refused = 0
        for path, flags in (
            ("/dev/kmsg", os.O_RDONLY),
            ("/dev/kmsg", os.O_RDWR),
            (tmp_path / "disk", os.O_WRONLY),
        ):
            try:
                os.open(path, flags)
            except PermissionError:
                refused += 1
        try:
            os.open(tmp_path / "disk", os.O_RDONLY)
        except OSError as error:  # there is no such disk, but it was asked for
            refused += 10 * (error.errno == errno.EPERM)
        os._exit(40 + refused)

    assert os.waitstatus_to_exitcode(os.waitpid(start(device_group, child), 0)[1]) == 43


def test_the_v2_id_is_the_inode_of_the_directory(group: Group) -> None:
    fd = group.open_v2_fd()
    try:
        assert os.fstat(fd).st_ino == group.v2_id()
    finally:
        os.close(fd)


def test_a_group_above_limits_the_sum_and_goes_with_its_parent() -> None:
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    tenant = Group(hierarchies, parent, "tenant-a")
    tenant.create()
    tenant.set_limits(Limits(pids=1))
    containers = [Group(hierarchies, f"{parent}/tenant-a", name) for name in ("one", "two")]
    for each in containers:
        each.create()
    child = start(containers[0], pause)
    try:
        assert tenant.pids() == [child]
        receive, send = os.pipe()

        def fork() -> None:
            try:
                os.fork()
            except OSError as error:
                os.write(send, bytes([error.errno or 0]))

        other = start(containers[1], fork)
        os.close(send)
        assert os.read(receive, 1) == bytes([errno.EAGAIN])
        os.close(receive)
        os.waitpid(other, 0)
    finally:
        end(containers[0], child)
        for each in containers:
            each.delete(soon())
        delete_parent(hierarchies, parent)
    assert not tenant.exists()


def test_a_glance_says_what_stats_say(group: Group) -> None:
    child = start(group, spin)
    deadline = soon()
    while group.glance().cpu_usage_us < 20_000 and time.monotonic() < deadline:
        select.poll().poll(5)
    before, glance, after = group.stats(), group.glance(), group.stats()
    assert before.cpu_usage_us <= glance.cpu_usage_us <= after.cpu_usage_us
    assert glance.pids == after.pids == 1
    assert abs(glance.memory_bytes - after.memory_bytes) < MEBIBYTE
    assert (glance.pressure.cpu_us is None) == (after.pressure.cpu_us is None)
    end(group, child)


def test_a_glance_at_a_group_that_is_gone_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Group(Hierarchies.detect(), "insula-test-none", "none").glance()


def test_the_groups_directly_below_are_named(group: Group) -> None:
    parent = Path(group.v2_directory()).parent.name
    for name in ("one/two", "one/three/four"):
        above, _, last = f"{parent}/{name}".rpartition("/")
        Group(Hierarchies.detect(), above, last).create()
    assert group.children() == ["three", "two"]
    assert Group(Hierarchies.detect(), parent, "absent").children() == []

# SPDX-License-Identifier: Apache-2.0
"""Limits of a container, as the kernel holds them."""

import os
from pathlib import Path

import pytest

from insula.boot.protocol import LimitsPlan, MountPlan
from spawned import Refused, Spawned, Started, wait_until

MEBIBYTE = 1 << 20


def test_memory_over_the_limit_is_137(host: Spawned) -> None:
    limits = LimitsPlan(memory_bytes=48 * MEBIBYTE, memory_swap_bytes=48 * MEBIBYTE)
    ended = host.run_python("print('begins', flush=True); bytearray(b'x') * (512 << 20)", limits=limits)
    assert (ended.code, ended.out) == (137, "begins\n")
    assert host.group(host.started[-1]).stats().oom_kills >= 1


def test_memory_of_shm_counts(host: Spawned) -> None:
    limits = LimitsPlan(memory_bytes=32 * MEBIBYTE, memory_swap_bytes=32 * MEBIBYTE)
    ended = host.run_shell(
        "dd if=/dev/zero of=/dev/shm/file bs=1M count=200 2>/dev/null; echo wrote", limits=limits
    )
    assert "wrote" not in ended.out or os.path.getsize(host.started[-1].plan.log) < MEBIBYTE
    assert host.group(host.started[-1]).stats().oom_kills >= 1


def test_a_neighbour_outlives_an_out_of_memory(host: Spawned) -> None:
    neighbour = host.start("/bin/sleep", "1000")
    limits = LimitsPlan(memory_bytes=32 * MEBIBYTE, memory_swap_bytes=32 * MEBIBYTE)
    assert host.run_python("bytearray(b'x') * (512 << 20)", limits=limits).code == 137
    assert host.held()[neighbour.key]["exit_code"] is None


def test_processes_are_counted(host: Spawned) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all"
    ended = host.run_shell(script, limits=LimitsPlan(pids=6))
    assert "fork" in ended.err and "all" not in ended.out
    assert host.run_shell("sleep 0 & sleep 0 & wait; echo fine", limits=LimitsPlan(pids=6)).out == "fine\n"


def test_an_exec_is_within_the_limit(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "sleep 1000 & wait", limits=LimitsPlan(pids=4))
    wait_until(lambda: len(host.group(container).pids()) == 2, what="it has begun")
    ended = host.execute_shell(container, "sleep 1000 & sleep 1000 & echo all")
    assert "fork" in ended.err and "all" not in ended.out


def _cpu_values(host: Spawned, container: Started) -> tuple[int, int]:
    tree = host.hierarchies.find_v1("cpu")
    if tree is not None:
        folder = Path(tree.base, host.parent, container.key)
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((folder / name).read_text() for name in names)
        return int(quota), int(period)
    quota, period = Path(host.group(container).v2_directory(), "cpu.max").read_text().split()
    return int(quota), int(period)


def test_limits_are_read_back(host: Spawned) -> None:
    limits = LimitsPlan(memory_bytes=64 * MEBIBYTE, cpu_quota_us=30_000, cpu_period_us=60_000, pids=77)
    container = host.start("/bin/sleep", "1000", limits=limits)
    stats = host.group(container).stats()
    assert (stats.memory_limit_bytes, stats.pids_limit) == (64 * MEBIBYTE, 77)
    assert _cpu_values(host, container) == (30_000, 60_000)


def test_time_over_the_quota_is_throttled(host: Spawned) -> None:
    container = host.start(
        "/bin/sh", "-c", "while true; do true; done", limits=LimitsPlan(cpu_quota_us=10_000)
    )
    wait_until(lambda: host.group(container).stats().throttled_us > 0, what="it is throttled")


def test_resource_limits_are_the_programs(host: Spawned) -> None:
    ended = host.run_shell("ulimit -n; ulimit -Hn; ulimit -c", rlimits={"nofile": 123, "core": 0})
    assert ended.out.split() == ["123", "123", "0"]


def test_resource_limit_above_the_hard_one_is_refused(host: Spawned) -> None:
    with pytest.raises(Refused) as refused:
        host.start("/bin/true", rlimits={"nofile": 1 << 40})
    assert refused.value.failure.code == "limit_refused"


def test_tmpfs_has_its_size(host: Spawned) -> None:
    mounts = (MountPlan(kind="tmpfs", target="/data", size_bytes=MEBIBYTE),)
    ended = host.run_shell(
        "dd if=/dev/zero of=/data/file bs=64k count=64; stat -c %s /data/file", mounts=mounts
    )
    assert "No space left" in ended.err
    assert int(ended.out) <= MEBIBYTE


def test_volume_carries_the_containers_ids(host: Spawned, tmp_path: Path) -> None:
    mounts = (MountPlan(kind="bind", source=str(tmp_path), target="/data", idmapped=True),)
    assert host.run_shell("touch /data/mine; stat -c %u /data/mine", mounts=mounts).out == "0\n"
    assert (tmp_path / "mine").stat().st_uid == 0


def test_bind_without_mapping_shows_foreign_owners(host: Spawned, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("host")
    mounts = (MountPlan(kind="bind", source=str(tmp_path), target="/data", read_only=True),)
    ended = host.run_shell("stat -c %u /data/file; echo x > /data/file", mounts=mounts)
    assert ended.out == "65534\n" and ended.code != 0
    assert (tmp_path / "file").read_text() == "host"


def test_a_container_goes_before_the_spawner_when_memory_runs_out(host: Spawned) -> None:
    container = host.start("/bin/sleep", "1000", user="user")
    added, _ = host.execute(container, "/bin/sleep", "1000")
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (host.process.pid, container.pid, added)
    ]
    assert scores[0] < scores[1] == scores[2], scores

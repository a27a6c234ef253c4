# SPDX-License-Identifier: Apache-2.0
"""insulad has a share of the processors of its own, beside its containers'; what it starts in them is an ordinary program."""

import os
from pathlib import Path

from hosted import Host, Person
from insula.kernel.cgroup import own_name
from insula.kernel.cgroup.hierarchy import parse
from insula.runtime.quotas import OWN_TIMES


def group_of(pid: int) -> Path:
    """The group of a process where processors are shared."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = parse(mounts, Path(f"/proc/{pid}/cgroup").read_text())
    hierarchy = found.find_v1("cpu") or found.v2
    assert hierarchy is not None
    return Path(hierarchy.own_directory)


def weight_of(group: Path) -> int:
    file = group / "cpu.shares"
    return int(file.read_text()) * 100 // 1024 if file.exists() else int((group / "cpu.weight").read_text())


def test_insulad_weighs_more_than_all_its_containers(host: Host) -> None:
    assert host.daemon is not None
    own = group_of(host.daemon.pid)
    assert own.name == own_name(host.cgroup)
    assert weight_of(own) == OWN_TIMES * weight_of(own.parent / host.cgroup)


def test_a_containers_program_is_an_ordinary_one_in_its_tenants_group(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "plain", "box", "sleep", "1000")
    pid = alice.look("plain")["pid"]
    assert f"{host.cgroup}/tenant-{alice.tenant}/" in str(group_of(pid))
    assert (os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)) == (0, os.SCHED_OTHER)

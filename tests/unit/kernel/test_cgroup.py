# SPDX-License-Identifier: Apache-2.0
"""Reading mount tables, checking limits and names of cgroups."""

import pytest

from insula.kernel.cgroup import Group, Hierarchies, Limits, hierarchy, own_name, values

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = "9:name=systemd:/\n4:memory:/api/f7fa\n1:cpu:/\n0::/\n"
PURE_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
PURE_V1 = """\
33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 25 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
"""


def test_a_hybrid_host_has_our_own_place_in_each_tree() -> None:
    found = hierarchy.parse(HYBRID, HYBRID_OWN)
    assert found.mode == "hybrid"
    memory, cpu = found.find_v1("memory"), found.find_v1("cpu")
    assert memory is not None and memory.base == "/sys/fs/cgroup/memory/api/f7fa"
    assert cpu is not None and cpu.base == "/sys/fs/cgroup/cpu"
    assert found.v2 is not None and found.v2.base == "/sys/fs/cgroup/unified"
    assert found.find_v1("pids") is None


def test_a_pure_v2_host_has_one_tree() -> None:
    found = hierarchy.parse(PURE_V2, "0::/system.slice/insula.service\n")
    assert (found.mode, found.v1) == ("v2", ())
    assert found.v2 is not None and found.v2.base == "/sys/fs/cgroup/system.slice/insula.service"


def test_after_moving_into_the_leaf_groups_are_made_beside_it() -> None:
    found = hierarchy.parse(PURE_V2, f"0::/system.slice/insula.service/{hierarchy.LEAF}\n")
    assert found.v2 is not None and found.v2.base == "/sys/fs/cgroup/system.slice/insula.service"


def test_groups_are_made_beside_insulads_own_where_it_is_in_one() -> None:
    own = own_name("insula-alpha")
    found = hierarchy.parse(PURE_V1, f"5:cpu,cpuacct:/docker/abc/{own}\n4:memory:/docker/abc/x\n")
    cpu = found.find_v1("cpu")
    assert cpu is not None and cpu.base == "/sys/fs/cgroup/cpu,cpuacct/docker/abc"


def test_insulads_own_group_has_one_name_even_if_its_containers_parent_has_two() -> None:
    assert own_name("machine/insula-alpha") == f"machine-insula-alpha{hierarchy.OWN_SUFFIX}"


def test_a_pure_v1_host_may_join_controllers_and_show_a_part_of_a_tree() -> None:
    found = hierarchy.parse(PURE_V1, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc/x\n")
    assert (found.mode, found.v2) == ("v1", None)
    cpu, memory = found.find_v1("cpuacct"), found.find_v1("memory")
    assert cpu is not None and cpu.base == "/sys/fs/cgroup/cpu,cpuacct/docker/abc"
    assert memory is not None and memory.base == "/sys/fs/cgroup/memory/x"


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(memory_bytes=0), "memory_bytes"),
        (Limits(pids=-1), "pids"),
        (Limits(cpu_weight=10_001), "cpu_weight"),
        (Limits(cpu_quota_us=1), "cpu_quota_us"),
        (Limits(cpu_period_us=2_000_000), "cpu_period_us"),
        (Limits(memory_bytes=1 << 20, memory_swap_bytes=1), "memory_swap_bytes"),
        (Limits(memory_swap_bytes=1 << 20), "memory_swap_bytes"),
    ],
)
def test_a_limit_that_no_kernel_takes_is_named(limits: Limits, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        values.check(limits)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "cgroup.procs"])
def test_a_name_that_leaves_the_parent_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a cgroup"):
        Group(Hierarchies((), None), "insula", name)

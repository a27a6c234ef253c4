# SPDX-License-Identifier: Apache-2.0
"""/proc, /sys and mounts."""

import errno
import os
import signal
import struct

from security.intruder.attempt import (
    DENIED,
    Broke,
    address,
    call,
    check,
    each,
    must_fail,
    named,
    shows_nothing,
    write,
)

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kmsg", "/proc/slabinfo", "/proc/vmallocinfo",
    "/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/page_owner", "/proc/mem", "/sys/firmware",
    "/proc/diskstats", "/proc/partitions", "/sys/block", "/sys/class/block", "/sys/dev/block", "/sys/devices/virtual/block", "/sys/fs/ext4",
    "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/tracing",
    "/sys/kernel/security", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/fs/cgroup", "/sys/hypervisor/uuid",
)  # fmt: skip


each("A9", named(MASKED), shows_nothing)
MS_BIND, MS_REMOUNT = 4096, 32


def mount(source: str, target: str, *, kind: str = "", flags: int = 0) -> int:
    return call(165, address(source.encode()), address(target.encode()), address(kind.encode()), flags, 0)


@check("A9-mask-stays")
def _mask_stays() -> str:
    for path in ("/proc/kcore", "/proc/keys", "/proc/sys", "/proc", "/sys", "/dev"):
        must_fail(lambda path=path: call(166, address(path.encode()), 2), *DENIED, errno.EINVAL)  # MNT_DETACH
        must_fail(lambda path=path: mount("none", path, flags=MS_REMOUNT | MS_BIND), *DENIED)
        must_fail(lambda path=path: mount("/tmp", path, flags=MS_BIND), *DENIED)
    must_fail(lambda: os.unlink("/proc/keys"))
    return must_fail(lambda: os.rename("/proc/keys", "/proc/other"))


WRITTEN = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/panic",
    "/proc/sys/kernel/sysrq", "/proc/sys/kernel/pid_max", "/proc/sys/kernel/randomize_va_space", "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/kernel/threads-max", "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches", "/proc/sys/vm/unprivileged_userfaultfd", "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/file-max",
    "/proc/sys/fs/protected_symlinks", "/proc/sys/fs/inotify/max_user_instances", "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/route_localnet", "/proc/sys/net/core/somaxconn",
    "/proc/sys/user/max_user_namespaces", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus/pci/00/00.0",
    "/proc/mtrr", "/proc/timer_stats", "/proc/acpi/wakeup", "/proc/1/oom_score_adj.", "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/module/kernel/parameters/panic",
    "/sys/kernel/profiling", "/sys/kernel/mm/ksm/run", "/sys/class/net/lo/mtu.",
)  # fmt: skip


def _not_written(path: str) -> str:
    return must_fail(lambda: write(path, b"1\n"))


each("A10", named(WRITTEN), _not_written)


@check("A10-attr-is-proc")
def _attr() -> str:
    for name in ("exec", "current", "fscreate"):
        try:
            must_fail(lambda name=name: write(f"/proc/self/attr/{name}", b"unconfined"))
        except FileNotFoundError:
            continue
    return "refused"


@check("A10-oom-score")
def _oom_score() -> str:
    return must_fail(lambda: write("/proc/self/oom_score_adj", b"-1000"), errno.EACCES, errno.EPERM)


@check("A11-network-settings-are-its-own")
def _network_settings() -> str:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        if file.read().strip() != "0":
            raise Broke("it is not the container's own value")
    return must_fail(lambda: write("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"7"))


KINDS = (
    "proc",
    "sysfs",
    "tmpfs",
    "overlay",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "bpf",
    "fuse",
    "devpts",
    "mqueue",
    "ext4",
    "binfmt_misc",
    "securityfs",
    "configfs",
)
each(
    "A12-mount",
    {kind: kind for kind in KINDS},
    lambda kind: must_fail(lambda: mount("none", "/tmp", kind=kind), *DENIED),
)
NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
    "time": 0x80,
}
each("A12-unshare", NAMESPACES, lambda flag: must_fail(lambda: call(272, flag), *DENIED))
each(
    "A12-clone",
    {name: flag for name, flag in NAMESPACES.items() if name != "time"},
    lambda flag: must_fail(lambda: _clone(flag), *DENIED, errno.EINVAL),
)


def _clone(flag: int) -> int:
    child = call(56, flag | signal.SIGCHLD)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@check("A12-clone3")
def _clone3() -> str:
    arguments = struct.pack("=11Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, *(0,) * 6)
    return must_fail(lambda: call(435, address(arguments), len(arguments)), errno.ENOSYS)

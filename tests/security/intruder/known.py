# SPDX-License-Identifier: Apache-2.0
"""What known tools look for first in a container (amicontained, CDK, botb, deepce): the same questions, own code."""

import errno
import glob
import os
import time

from security.intruder.attempt import Broke, check, each, is_root, must_fail, named, shows_nothing, write

INTERESTING = (
    "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/podman/podman.sock",
    "/var/lib/lxd/unix.socket", "/run/insula", "/var/lib/insula", "/run/systemd/private", "/run/dbus/system_bus_socket",
    "/var/run/secrets/kubernetes.io", "/root/.ssh", "/root/.aws", "/root/.docker", "/root/.kube", "/etc/kubernetes",
    "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/vsock", "/dev/vhost-net",
    "/sys/firmware/efi/efivars", "/sys/kernel/debug/tracing", "/proc/fs/nfsd",
)  # fmt: skip
each("A30-botb", named(INTERESTING), shows_nothing)


@check("A30-amicontained-blocked-calls")
def _filter() -> str:
    with open("/proc/self/status") as file:
        filters = [line.split()[1] for line in file if line.startswith("Seccomp_filters")]
    if filters == ["0"]:
        raise Broke("no filter")
    return f"{filters}"


@check("A30-amicontained-dangerous-rights")
def _dangerous() -> str:
    # DAC_READ_SEARCH, NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, SYS_TIME, MAC_*, SYSLOG, BPF, PERFMON.
    bits = (2, 12, 16, 17, 19, 21, 22, 25, 32, 33, 34, 38, 39, 40)
    with open("/proc/self/status") as file:
        bounding = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd"))
    if held := [bit for bit in bits if bounding >> bit & 1]:
        raise Broke(f"{held}")
    return "none"


@check("A30-cdk-mounts-of-the-host")
def _mounts() -> str:
    with open("/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    kinds = {row[4]: row[row.index("-") + 1] for row in rows}
    known = {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue"}
    wrong = {place: kind for place, kind in kinds.items() if kind not in known and place != "/data"}
    if wrong:
        raise Broke(f"{wrong}")
    return f"{len(rows)} mounts"


@check("A30-cdk-shared-namespaces")
def _namespaces() -> str:
    # The initial namespaces have fixed numbers: include/linux/proc_ns.h.
    first = {
        "ipc": 0xEFFFFFFF,
        "uts": 0xEFFFFFFE,
        "user": 0xEFFFFFFD,
        "pid": 0xEFFFFFFC,
        "cgroup": 0xEFFFFFFB,
        "time": 0xEFFFFFFA,
    }
    shared = [
        kind for kind, number in first.items() if os.readlink(f"/proc/self/ns/{kind}") == f"{kind}:[{number}]"
    ]
    if shared:
        raise Broke(f"{shared}")
    return "none"


@check("A30-deepce-secrets-in-the-environment")
def _environment() -> str:
    allowed = {"PATH", "HOME", "TERM", "HOSTNAME", "LC_CTYPE"}
    if more := set(os.environ) - allowed:
        raise Broke(f"{sorted(more)}")
    return f"{sorted(os.environ)}"


@check("A30-deepce-shadow")
def _shadow() -> str:
    for path in (
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/sudoers",
        *glob.glob("/etc/ssh/*_key"),
        *glob.glob("/etc/ssl/private/*"),
    ):
        try:
            with open(path) as file:
                text = file.read()
        except OSError:
            continue
        if (
            any(line.split(":")[1][:1] == "$" for line in text.splitlines() if line.count(":") > 1)
            or "PRIVATE KEY" in text
        ):
            raise Broke(path)
    return "no secret"


@check("A30-core-goes-nowhere")
def _core() -> str:
    # A pattern with a pipe would run a program of the host's for a crash in here; it cannot be set from here.
    return must_fail(lambda: write("/proc/sys/kernel/core_pattern", b"|/tmp/x"), errno.EROFS, errno.EACCES)


@check("A28-time-offsets-are-fixed")
def _offsets() -> str:
    return must_fail(lambda: write("/proc/self/timens_offsets", b"monotonic 1000 0\n"))


@check("A28-clocks-go-forward")
def _clocks() -> str:
    for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC_RAW):
        before = time.clock_gettime(clock)
        for _ in range(1000):
            now = time.clock_gettime(clock)
            if now < before:
                raise Broke(f"clock {clock} went back by {before - now}")
            before = now
    return "forward"


@check("A28-clock-cannot-be-set")
def _set_clock() -> str:
    if is_root():
        must_fail(lambda: time.clock_settime(time.CLOCK_REALTIME, 0.0), errno.EPERM)
    return must_fail(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()), errno.EPERM)

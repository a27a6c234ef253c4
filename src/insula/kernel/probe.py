# SPDX-License-Identifier: Apache-2.0
"""What this kernel and machine can do: every feature and tool that insula uses, as data, each really tried.

A line of `FEATURES` says what the feature is needed for, whether containers run without it, what it costs to lack it and
how to cure that.  Versions are never compared: distributions carry features backwards and leave others out.  Out of scope:
how features are tried (`trials/`) and shown (`insula doctor`).

Trials fork, so a process with threads does not call `probe_all` but runs `python -m insula.kernel.probe`, which prints it as
one JSON list.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from insula.kernel.libc import MissingSystemCall
from insula.kernel.trials import Absent, Trial, files, groups, memory, network, process, reason_of, tools


class State(StrEnum):
    """What a trial found."""

    FOUND = "found"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Something that insula uses.  `required`: no container runs without it."""

    name: str
    needed_for: str
    required: bool
    consequence: str
    cure: str
    probe: Trial


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a trial found: `detail` is the variant found, or the reason why it is missing."""

    feature: Feature
    state: State
    detail: str

    @property
    def is_fatal(self) -> bool:
        """Whether no container runs because of this."""
        return self.state is State.MISSING and self.feature.required


def _required(name: str, needed_for: str, *, cure: str, probe: Trial) -> Feature:
    return Feature(
        name=name,
        needed_for=needed_for,
        required=True,
        consequence="no container runs",
        cure=cure,
        probe=probe,
    )


def _optional(name: str, needed_for: str, *, consequence: str, cure: str, probe: Trial) -> Feature:
    return Feature(
        name=name, needed_for=needed_for, required=False, consequence=consequence, cure=cure, probe=probe
    )


_ROOT = "run as root, outside of a container that limits it"
_NAMESPACES = "a kernel with all namespaces; no sandbox around insulad that forbids unshare"
_KERNEL = "a newer kernel (Linux 5.19 or later)"

_PROCESS_FEATURES = (
    _required("root (CAP_SYS_ADMIN)", "mounts and namespaces", cure=_ROOT, probe=process.cap_sys_admin),
    _required("user namespace", "ids of the tenant", cure=_NAMESPACES, probe=process.user_namespace),
    _required("mount namespace", "own file system", cure=_NAMESPACES, probe=process.mount_namespace),
    _required("pid namespace", "own processes", cure=_NAMESPACES, probe=process.pid_namespace),
    _required("network namespace", "own network", cure=_NAMESPACES, probe=process.network_namespace),
    _required("ipc namespace", "own shared memory", cure=_NAMESPACES, probe=process.ipc_namespace),
    _required("uts namespace", "own host name", cure=_NAMESPACES, probe=process.uts_namespace),
    _required("cgroup namespace", "own view of cgroups", cure=_NAMESPACES, probe=process.cgroup_namespace),
    _required("time namespace", "clocks that move with it", cure=_NAMESPACES, probe=process.time_namespace),
    _required("clone3", "start", cure=_KERNEL, probe=process.clone3),
    _required("pidfd", "signals and waiting without races", cure=_KERNEL, probe=process.pidfd),
    _required(
        "seccomp filter",
        "the allow-list of system calls",
        cure="CONFIG_SECCOMP_FILTER",
        probe=process.seccomp,
    ),
)
_FILE_FEATURES = (
    _required("new mount API", "mounts as descriptors", cure=_KERNEL, probe=files.new_mount_api),
    _required("openat2", "paths that cannot escape", cure=_KERNEL, probe=files.openat2),
    _required(
        "id-mapped mounts",
        "layers without chown",
        cure="put /var/lib/insula on ext4, xfs or btrfs",
        probe=files.idmapped_mounts,
    ),
    _required(
        "overlay",
        "root file systems",
        cure="CONFIG_OVERLAY_FS (modprobe overlay); /var/lib/insula on ext4, xfs or btrfs",
        probe=files.overlay,
    ),
    _required(
        "overlay, id-mapped layers",
        "root file systems with own ids",
        cure="Linux 5.19 or later",
        probe=files.overlay_idmapped,
    ),
    _optional(
        "tmpfs, id-mapped",
        "the image `host`",
        consequence="no container can be made of the image `host`; images that are built or imported work",
        cure="Linux 6.3 or later",
        probe=files.idmapped_tmpfs,
    ),
    _optional(
        "limits of disk space",
        "insula tenant set TENANT disk=…, insula run --disk",
        consequence="no tenant and no container can be given a limit of disk space",
        cure="modprobe loop and apt-get install e2fsprogs; or mount the state's file system with `prjquota`",
        probe=files.disk_limits,
    ),
)
_GROUP_FEATURES = (
    _required("cgroups", "limits and counting", cure="mount /sys/fs/cgroup", probe=groups.mode),
    _optional(
        "cgroup memory",
        "--memory",
        consequence="memory cannot be limited",
        cure="boot with cgroup_enable=memory",
        probe=groups.memory,
    ),
    _optional(
        "cgroup cpu",
        "--cpus",
        consequence="cpu time cannot be limited",
        cure="CONFIG_CFS_BANDWIDTH",
        probe=groups.cpu,
    ),
    _optional(
        "cgroup pids",
        "--pids",
        consequence="a fork bomb is not stopped",
        cure="CONFIG_CGROUP_PIDS",
        probe=groups.pids,
    ),
    _optional(
        "cgroup devices",
        "guard of devices",
        consequence="only the user namespace guards devices",
        cure="mount the v1 devices controller, or cgroup v2 with BPF",
        probe=groups.devices,
    ),
    _optional(
        "cgroup v2 freezer",
        "pause, checkpoint, migrate",
        consequence="no pause, no checkpoint, no migration",
        cure="mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        probe=groups.freezer,
    ),
)
_NETWORK_FEATURES = (
    _optional(
        "veth",
        "networks",
        consequence="only --network none",
        cure="modprobe veth",
        probe=network.veth,
    ),
    _optional(
        "bridge",
        "networks",
        consequence="only --network none",
        cure="modprobe bridge",
        probe=network.bridge,
    ),
    _optional(
        "nftables",
        "NAT, ports, walls between tenants",
        consequence="only --network none",
        cure="apt-get install nftables; modprobe nf_tables nft_chain_nat nft_masq",
        probe=network.nftables,
    ),
    _optional(
        "ipv6",
        "IPv6 of containers",
        consequence="networks are IPv4 only",
        cure="sysctl net.ipv6.conf.default.disable_ipv6=0; boot without ipv6.disable=1; nftables 1.0.3 or newer",
        probe=network.ipv6,
    ),
    _optional(
        "tcp repair",
        "connections that move",
        consequence="connections break when a container moves",
        cure=_ROOT,
        probe=process.tcp_repair,
    ),
)
_MOVE_FEATURES = (
    _optional(
        "criu",
        "checkpoint, restore, migrate",
        consequence="no checkpoint, no restore, no migration",
        cure="insula setup",
        probe=tools.criu,
    ),
    _optional(
        "CAP_CHECKPOINT_RESTORE",
        "restore with the same pids",
        consequence="no restore",
        cure=_ROOT,
        probe=process.cap_checkpoint_restore,
    ),
    _optional(
        "CAP_SYS_RESOURCE",
        "limits above the hard ones",
        consequence="a program whose limits were lowered since may not restore; the user namespace helps with memory maps",
        cure="give insulad CAP_SYS_RESOURCE",
        probe=process.cap_sys_resource,
    ),
    _optional(
        "userfaultfd WP_ASYNC",
        "memory that moves before the freeze",
        consequence="the next tracker is used",
        cure="Linux 6.7 or later",
        probe=memory.userfaultfd_wp_async,
    ),
    _optional(
        "tracking from outside",
        "memory that moves before the freeze",
        consequence="all memory moves frozen, unless there is soft-dirty",
        cure="x86_64, CONFIG_CHECKPOINT_RESTORE; run as root",
        probe=memory.tracking_from_outside,
    ),
    _optional(
        "soft-dirty",
        "memory that moves before the freeze",
        consequence="the other tracker is used, or all memory moves frozen",
        cure="CONFIG_MEM_SOFT_DIRTY",
        probe=memory.soft_dirty,
    ),
)
_TOOL_FEATURES = (
    _optional(
        "bpf",
        "watching from outside",
        consequence="no trace, counts of system calls, profiles, rules; figures of cgroups and /proc go on",
        cure="CONFIG_BPF_SYSCALL, CONFIG_DEBUG_INFO_BTF",
        probe=process.bpf,
    ),
    _optional(
        "libbpf",
        "watching from outside",
        consequence="no trace, counts of system calls, profiles, rules; figures of cgroups and /proc go on",
        cure="apt-get install libbpf1; CONFIG_DEBUG_INFO_BTF",
        probe=tools.libbpf,
    ),
    _optional(
        "programs at calls",
        "events of system calls, at no cost to others",
        consequence="told when a call ends: while somebody asks, each call of every process on the host takes 90 to 190 ns longer",
        cure="Linux 5.17, CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS; nothing around insulad that forbids eBPF trampolines",
        probe=tools.call_hooks,
    ),
    _optional(
        "mmdebstrap",
        "image build --debian",
        consequence="images can only be imported",
        cure="apt-get install mmdebstrap",
        probe=tools.mmdebstrap,
    ),
    _optional(
        "tini-static",
        "the init of containers",
        consequence="a container whose program reaps nothing collects zombies",
        cure="apt-get install tini",
        probe=tools.tini,
    ),
    _optional(
        "lent uids",
        "telling who is nobody",
        consequence="whoever is lent a uid by that service can be a user of its own with it",
        cure="write the whole range that it lends into /etc/subuid, in any name",
        probe=tools.lent_uids,
    ),
    _optional(
        "tar", "image import, cp", consequence="no import, no cp", cure="apt-get install tar", probe=tools.tar
    ),
    _optional(
        "ip",
        "checkpoint of networks",
        consequence="criu cannot dump a network namespace",
        cure="apt-get install iproute2",
        probe=tools.ip,
    ),
)

FEATURES: tuple[Feature, ...] = (
    *_PROCESS_FEATURES,
    *_FILE_FEATURES,
    *_GROUP_FEATURES,
    *_NETWORK_FEATURES,
    *_MOVE_FEATURES,
    *_TOOL_FEATURES,
)


def probe_one(feature: Feature) -> Finding:
    """Try one feature."""
    try:
        detail = feature.probe()
    except (Absent, MissingSystemCall, OSError) as error:
        return Finding(feature=feature, state=State.MISSING, detail=reason_of(error))
    return Finding(feature=feature, state=State.FOUND, detail=detail)


def probe_all(features: Iterable[Feature] = FEATURES) -> tuple[Finding, ...]:
    """Try every feature, in the order of the table; leave nothing behind."""
    return tuple(probe_one(feature) for feature in features)


def to_json(findings: Iterable[Finding]) -> str:
    """Write findings for machines: a list of objects with stable keys."""
    rows = [
        {
            "name": finding.feature.name,
            "state": finding.state.value,
            "detail": finding.detail,
            "required": finding.feature.required,
            "needed_for": finding.feature.needed_for,
            "consequence": finding.feature.consequence,
            "cure": finding.feature.cure,
        }
        for finding in findings
    ]
    return json.dumps(rows, indent=1)


if __name__ == "__main__":
    print(to_json(probe_all()))
    sys.exit(0)

# SPDX-License-Identifier: Apache-2.0
"""Capabilities: their names, what a container gets by default, and how a process takes on an exact set.

Out of scope: file capabilities, and who may ask for more.  Names are written as docker writes them, without `CAP_`.

Sources: capabilities(7), capset(2), prctl(2); `include/uapi/linux/capability.h`.
"""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from insula.kernel import libc

#: In the order of their bits, 0 to 40 (Linux 5.9 and later).
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
BITS = {name: bit for bit, name in enumerate(NAMES)}

ALL = frozenset(NAMES)

#: What root in a container has unless told otherwise: the set that docker and podman users expect.
DEFAULT = frozenset((
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
))  # fmt: skip

_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class CapabilitySets(NamedTuple):
    """The five sets of a thread."""

    effective: frozenset[str]
    permitted: frozenset[str]
    inheritable: frozenset[str]
    bounding: frozenset[str]
    ambient: frozenset[str]


def parse(name: str) -> frozenset[str]:
    """Read a capability as people write it: `NET_ADMIN`, `cap_net_admin`; `ALL` is every one.

    Raises: ValueError if there is none of that name.
    """
    word = name.strip().upper().removeprefix("CAP_")
    if word == "ALL":
        return ALL
    if word not in BITS:
        raise ValueError(f"no capability is named `{name}`")
    return frozenset((word,))


def to_mask(names: frozenset[str]) -> int:
    """Return the set as the kernel's bits."""
    return sum(1 << BITS[name] for name in names)


def from_mask(mask: int) -> frozenset[str]:
    """Return the names of the kernel's bits; bits that are not known here are left out."""
    return frozenset(name for bit, name in enumerate(NAMES) if mask >> bit & 1)


def current() -> CapabilitySets:
    """Read the sets of the calling thread."""
    with open("/proc/thread-self/status", "rb") as status:
        masks = {line[:6]: int(line[8:], 16) for line in status if line.startswith(b"Cap")}
    keys = (b"CapEff", b"CapPrm", b"CapInh", b"CapBnd", b"CapAmb")
    return CapabilitySets(*(from_mask(masks[key]) for key in keys))


def set_exact(names: frozenset[str]) -> None:
    """Keep these capabilities and no others: bounding, permitted and effective; inheritable and ambient become empty.

    A name that the process is not permitted is left out: the kernel gives none back.  The bounding set comes first,
    since dropping from it takes SETPCAP, which may not be among the names.  For a switch of users see `become`.
    Raises: OSError: EPERM without SETPCAP.
    """
    _limit_bounding(names)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _, permitted, _ = _capget()
    kept = to_mask(names) & permitted
    _capset(kept, permitted=kept, inheritable=0)


def become(names: frozenset[str], *, uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """Switch to a user for good, with these capabilities as the ceiling.

    As root of the namespace the process holds them; as anybody else it holds none, and setuid programs can gain no more
    than them.  The switch takes SETUID and SETGID before the set is cut, so neither need be among the names.
    """
    _limit_bounding(names)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _, permitted, _ = _capget()
    kept = to_mask(names) & permitted if uid == 0 else 0
    _capset(kept, permitted=kept, inheritable=0)


def set_effective(names: frozenset[str]) -> None:
    """Make these of the permitted capabilities effective, and no others."""
    _, permitted, inheritable = _capget()
    _capset(to_mask(names) & permitted, permitted=permitted, inheritable=inheritable)


def _limit_bounding(names: frozenset[str]) -> None:
    for bit, name in enumerate(NAMES):
        if name not in names and _is_bounding(bit):
            libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)
    # Capabilities that a newer kernel has and this table has not: nobody can have asked for them.
    bit = len(NAMES)
    while _is_bounding(bit):
        libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)
        bit += 1


def _is_bounding(bit: int) -> bool:
    try:
        return libc.prctl(_PR_CAPBSET_READ, bit, 0, 0, 0) == 1
    except OSError:  # EINVAL: this kernel has fewer
        return False


def _header() -> bytes:
    # struct __user_cap_header_struct { __u32 version; int pid; }
    return struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)


def _capget() -> tuple[int, int, int]:
    # Two of struct __user_cap_data_struct { __u32 effective, permitted, inheritable; }: low words, then high words.
    header, data = _header(), bytearray(24)
    libc.capget(libc.address_of(header), libc.address_of(data))
    low = struct.unpack_from("=III", data, 0)
    high = struct.unpack_from("=III", data, 12)
    return low[0] | high[0] << 32, low[1] | high[1] << 32, low[2] | high[2] << 32


def _capset(effective: int, *, permitted: int, inheritable: int) -> None:
    sets = (effective, permitted, inheritable)
    data = struct.pack("=6I", *(value & 0xFFFFFFFF for value in sets), *(value >> 32 for value in sets))
    header = _header()
    libc.capset(libc.address_of(header), libc.address_of(data))

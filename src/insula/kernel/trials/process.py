# SPDX-License-Identifier: Apache-2.0
"""Trials of namespaces, processes, capabilities, seccomp and BPF.

Sources: clone(2), unshare(2), pidfd_open(2), pidfd_getfd(2), seccomp(2), bpf(2), tcp(7), capabilities(7).
"""

import os
import signal
import socket
import struct
from pathlib import Path

from insula.kernel import caps, libc, namespace
from insula.kernel.trials import Absent, in_child

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_BPF_RET_K_ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_TCP_REPAIR = 19
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_TRACEPOINT = 5
_BTF = Path("/sys/kernel/btf/vmlinux")


def _try_namespace(flag: int) -> str:
    return in_child(lambda: "", namespaces=flag)


def cgroup_namespace() -> str:
    """Try a cgroup namespace."""
    return _try_namespace(namespace.CLONE_NEWCGROUP)


def ipc_namespace() -> str:
    """Try an ipc namespace."""
    return _try_namespace(namespace.CLONE_NEWIPC)


def mount_namespace() -> str:
    """Try a mount namespace."""
    return _try_namespace(namespace.CLONE_NEWNS)


def network_namespace() -> str:
    """Try a network namespace."""
    return _try_namespace(namespace.CLONE_NEWNET)


def pid_namespace() -> str:
    """Try a pid namespace."""
    return _try_namespace(namespace.CLONE_NEWPID)


def time_namespace() -> str:
    """Try a time namespace."""
    return _try_namespace(namespace.CLONE_NEWTIME)


def user_namespace() -> str:
    """Try a user namespace."""
    return _try_namespace(namespace.CLONE_NEWUSER)


def uts_namespace() -> str:
    """Try a uts namespace."""
    return _try_namespace(namespace.CLONE_NEWUTS)


def clone3() -> str:
    """Make a child with clone3 in new namespaces and wait for it."""

    def spawn() -> str:
        child = namespace.spawn(namespace.CLONE_NEWPID | namespace.CLONE_NEWNS)
        if child.pid == 0:
            os._exit(0)
        os.close(child.pidfd)
        os.waitpid(child.pid, 0)
        return ""

    return in_child(spawn)


def pidfd() -> str:
    """Open a child by descriptor, take a descriptor out of it, and kill it through it."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        handle = os.pidfd_open(child)
        try:
            os.close(libc.pidfd_getfd(handle, 0, 0))
        finally:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return "pidfd_open, pidfd_send_signal, pidfd_getfd"


def seccomp() -> str:
    """Load a filter that allows everything, in a child."""

    def load() -> str:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
        program = struct.pack("@HP", 1, libc.address_of(_BPF_RET_K_ALLOW))
        libc.seccomp(_SECCOMP_SET_MODE_FILTER, 0, libc.address_of(program))
        return ""

    return in_child(load)


def bpf() -> str:
    """Load a tracepoint program that returns 0, and look for the kernel's types (BTF)."""
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    licence = b"GPL\0"
    # union bpf_attr, BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, …
    attributes = struct.pack(
        "=IIQQ", _BPF_PROG_TYPE_TRACEPOINT, 2, libc.address_of(instructions), libc.address_of(licence)
    ).ljust(48, b"\0")
    os.close(libc.bpf(_BPF_PROG_LOAD, libc.address_of(attributes), len(attributes)))
    if not _BTF.exists():
        raise Absent(f"{_BTF} is not there")
    return "tracepoint program, BTF"


def _try_capability(name: str) -> str:
    if name not in caps.current().effective:
        raise Absent(f"this process lacks CAP_{name}")
    return ""


def cap_sys_admin() -> str:
    """Look for CAP_SYS_ADMIN."""
    return _try_capability("SYS_ADMIN")


def cap_sys_resource() -> str:
    """Look for CAP_SYS_RESOURCE."""
    return _try_capability("SYS_RESOURCE")


def cap_checkpoint_restore() -> str:
    """Choose the next pid of a new pid namespace, as CRIU does."""

    def choose() -> str:
        Path("/proc/sys/kernel/ns_last_pid").read_bytes()
        return _try_capability("CHECKPOINT_RESTORE")

    return in_child(choose)


def tcp_repair() -> str:
    """Put a TCP socket into repair mode and take it out again."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    return ""

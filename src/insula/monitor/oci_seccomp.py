# SPDX-License-Identifier: Apache-2.0
"""A profile's system calls as other managers take them, so that what ran here runs there.  Pure.

It allows what our own filter allows under the profile (`kernel/seccomp_policy.py`), by the same looks at arguments, and what
an OCI runtime still does behind the filter, before it starts the program: those were taken from traces of runc 1.1.5 and
crun 1.8.1, with `no_new_privs` and without.
Source: OCI runtime specification, config-linux.md, "Seccomp".
"""

import errno
import os
from collections.abc import Collection, Iterator
from enum import StrEnum

import msgspec

from insula.kernel.covered_calls import allowed_by
from insula.kernel.seccomp_policy import (
    ALWAYS_NEEDED,
    CLONE_NEW_MASK,
    FAMILIES,
    NESTED,
    PERSONALITIES,
)


class OciRuntime(StrEnum):
    """Who starts the program behind the filter."""

    ANY = "any"
    RUNC = "runc"
    CRUN = "crun"
    NONE = "none"
    """Whoever puts the filter on right before `execve`."""


_RUNC_TEXT = """
    capget capset chdir close close_range epoll_ctl faccessat2 fchown fcntl fstat fstatfs futex getcwd getdents64 getpid
    getppid gettid madvise mmap munmap nanosleep newfstatat openat openat2 prctl read readlinkat rt_sigprocmask
    rt_sigreturn sched_yield setgid setgroups setuid sigaltstack statx tgkill write
"""
_CRUN_TEXT = """
    capset close close_range prctl rt_sigaction rt_sigprocmask seccomp setgroups setresgid setresuid write
"""
_OF_RUNTIME = {
    OciRuntime.RUNC: frozenset(_RUNC_TEXT.split()),
    OciRuntime.CRUN: frozenset(_CRUN_TEXT.split()),
    OciRuntime.ANY: frozenset((_RUNC_TEXT + _CRUN_TEXT).split()),
    OciRuntime.NONE: frozenset[str](),
}
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_MAKES_NAMESPACES = NESTED - {"clone", "clone3"}


class SeccompArgument(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What one argument of a call has to be."""

    index: int
    value: int
    value_two: int = 0
    op: str


class SeccompRule(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What happens to some calls."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArgument, ...] = ()


class SeccompList(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`linux.seccomp` of a bundle's configuration; docker and podman take it by `--security-opt seccomp=FILE`."""

    default_action: str
    default_errno_ret: int
    architectures: tuple[str, ...]
    syscalls: tuple[SeccompRule, ...]


_ALLOW, _REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EQUAL, _MASKED = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"

#: Calls of which a look at the first argument decides, and what it may be.
_LIMITED: dict[str, tuple[SeccompArgument, ...]] = {
    "clone": (SeccompArgument(index=0, value=CLONE_NEW_MASK, value_two=0, op=_MASKED),),
    "personality": tuple(SeccompArgument(index=0, value=each, op=_EQUAL) for each in PERSONALITIES),
    "socket": tuple(SeccompArgument(index=0, value=each, op=_EQUAL) for each in FAMILIES),
    "socketpair": tuple(SeccompArgument(index=0, value=each, op=_EQUAL) for each in FAMILIES),
}


def seccomp_list(
    calls: Collection[str],
    *,
    refused: Collection[str] = (),
    runtime: OciRuntime,
    machine: str | None = None,
) -> SeccompList:
    """Return the allow-list of what was recorded.

    calls, refused: system calls by name.  machine: as os.uname() names it; None is this one.  Calls of other architectures that
    its processors make, too, are refused: nothing of them was recorded.
    """
    allowed = allowed_by(calls, refused=refused) | ALWAYS_NEEDED | _OF_RUNTIME[runtime]
    architecture = _ARCHITECTURES.get(machine or os.uname().machine)
    return SeccompList(
        default_action=_REFUSE,
        default_errno_ret=errno.EPERM,
        architectures=(architecture,) if architecture else (),
        syscalls=tuple(_rules(allowed)),
    )


def _rules(allowed: frozenset[str]) -> Iterator[SeccompRule]:
    # Who made namespaces was allowed to: it ran as a system container.
    limited = _LIMITED.keys() & allowed - ({"clone"} if allowed & _MAKES_NAMESPACES else set())
    yield SeccompRule(names=tuple(sorted(allowed - limited)), action=_ALLOW)
    for name in sorted(limited):
        for argument in _LIMITED[name]:
            yield SeccompRule(names=(name,), action=_ALLOW, args=(argument,))
    if "clone3" not in allowed:
        # A C library that gets ENOSYS goes on with clone; with EPERM it starts no thread.
        yield SeccompRule(names=("clone3",), action=_REFUSE, errno_ret=errno.ENOSYS)

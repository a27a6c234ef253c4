# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of a container: a classic BPF program out of the policy, and its installation.

Out of scope: which calls are allowed (`seccomp_policy`).  The program checks the architecture, then finds the number by
binary search over ranges of equal verdict, so a call costs some eight comparisons, not hundreds.  Calls of the 32-bit and
x32 tables, which would need tables of their own, do not exist for a container: ENOSYS.

Sources: seccomp(2); `Documentation/userspace-api/seccomp_filter.rst`; `include/uapi/linux/{seccomp,filter,audit}.h`.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from insula.kernel import libc, seccomp_policy, syscalls
from insula.kernel.seccomp_policy import Policy, Verdict

BPF_LD_W_ABS = 0x20
BPF_JMP_JA = 0x05
BPF_JMP_JEQ_K = 0x15
BPF_JMP_JGE_K = 0x35
BPF_JMP_JSET_K = 0x45
BPF_RET_K = 0x06

SECCOMP_RET_LOG = 0x7FFC0000
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_NOTIF_RECV, _NOTIF_ADDFD = 0xC0502100, 0x40182103
_NOTIFICATION_BYTES = 80
"""Of struct seccomp_notif."""
_ADDFD_SEND = 1 << 1

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
_OFFSET_NR = 0
_OFFSET_ARCH = 4
_OFFSET_FIRST_ARGUMENT = 16  # its low half: both architectures are little-endian, and the kernel reads an int
_ARGUMENT_BYTES = 8

_JUMP_LIMIT = 255


class Instruction(NamedTuple):
    """struct sock_filter { __u16 code; __u8 jt; __u8 jf; __u32 k; }"""

    code: int
    jt: int
    jf: int
    k: int


class Span(NamedTuple):
    """System call numbers from `first` to that of the next span, all with one verdict."""

    first: int
    verdict: Verdict


class Call(NamedTuple):
    """A system call, and the arguments that make it the one meant: number of the argument, from 0, and its low half."""

    name: str
    arguments: tuple[tuple[int, int], ...]


def build_filter(
    capabilities: frozenset[str],
    *,
    nested: bool = False,
    profile: frozenset[str] | None = None,
    is_logged: bool = False,
    machine: str | None = None,
) -> bytes:
    """Build the filter for a container's bounding set, as an array of sock_filter.  The same input gives the same bytes.

    nested: the container may make namespaces and mounts of its own.
    profile: of the calls that are allowed, only these; None: all.  is_logged: others are made, and logged.
    machine: as os.uname() names it; None is this one.
    Raises: LookupError if the architecture is not known.
    """
    machine = machine or os.uname().machine
    numbers = syscalls.numbers(machine)
    policy = seccomp_policy.for_capabilities(
        capabilities, nested=nested, profile=profile, is_logged=is_logged
    )
    tree = _search(_spans(numbers, policy))
    program = [
        Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_ARCH),
        Instruction(BPF_JMP_JEQ_K, 1, 0, AUDIT_ARCH[machine]),
        _refuse(errno.ENOSYS),
        Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_NR),
        *tree,
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def refuse_ioctl(request: int, *, code: int, machine: str | None = None) -> bytes:
    """Build a filter under which one ioctl fails with an errno, and everything else is as it was."""
    machine = machine or os.uname().machine
    program = [
        Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_ARCH),
        Instruction(BPF_JMP_JEQ_K, 0, 5, AUDIT_ARCH[machine]),
        Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_NR),
        Instruction(BPF_JMP_JEQ_K, 0, 3, syscalls.numbers(machine)["ioctl"]),
        Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_FIRST_ARGUMENT + _ARGUMENT_BYTES),
        Instruction(BPF_JMP_JEQ_K, 0, 1, request),
        _refuse(code),
        _ALLOW,
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def notify_of(call: Call, *, machine: str | None = None) -> bytes:
    """Build a filter under which one call waits for whoever holds the listener, and everything else is as it was."""
    machine = machine or os.uname().machine
    wanted = [
        (_OFFSET_ARCH, AUDIT_ARCH[machine]),
        (_OFFSET_NR, syscalls.numbers(machine)[call.name]),
        *((_OFFSET_FIRST_ARGUMENT + number * _ARGUMENT_BYTES, value) for number, value in call.arguments),
    ]
    program = [Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_USER_NOTIF)]
    for offset, value in reversed(wanted):
        test = Instruction(BPF_JMP_JEQ_K, 0, len(program), value)
        program = [Instruction(BPF_LD_W_ABS, 0, 0, offset), test, *program]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*program, _ALLOW))


def answer_descriptor(listener: int, descriptor: int) -> None:
    """Give whoever waits in a call (`notify_of`) a copy of a descriptor as its result.  Since Linux 5.14.

    Raises: OSError: ENOENT if it has ended meanwhile.
    """
    waiting = bytearray(_NOTIFICATION_BYTES)
    fcntl.ioctl(listener, _NOTIF_RECV, waiting)
    number = struct.unpack_from("=Q", waiting)[0]
    # struct seccomp_notif_addfd { u64 id; u32 flags; u32 srcfd; u32 newfd; u32 newfd_flags; }
    fcntl.ioctl(listener, _NOTIF_ADDFD, struct.pack("=QIIII", number, _ADDFD_SEND, descriptor, 0, 0))


def install(program: bytes) -> None:
    """Put the calling thread, and what it will become, under a filter for good.

    The caller has set no_new_privs or holds SYS_ADMIN.
    Raises: OSError: EACCES without either, EINVAL if the program is malformed.
    """
    argument = fprog(program, libc.address_of(program))
    libc.seccomp(SECCOMP_SET_MODE_FILTER, 0, libc.address_of(argument))


def fprog(program: bytes, address: int) -> bytes:
    """Return what seccomp(2) takes of a program that lies at an address."""
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    return struct.pack("=H6xQ", len(program) // 8, address)


def _spans(numbers: dict[str, int], policy: Policy) -> list[Span]:
    verdicts = {number: policy.judge(name) for name, number in numbers.items()}
    spans: list[Span] = []
    # The last number + 1 opens the span of all that is unknown; gaps in the table are unknown too.
    for number in range(max(verdicts) + 2):
        verdict = verdicts.get(number, Verdict.ENOSYS)
        if not spans or spans[-1].verdict is not verdict:
            spans.append(Span(number, verdict))
    return spans


def _search(spans: Sequence[Span]) -> list[Instruction]:
    if len(spans) == 1:
        return _LEAVES[spans[0].verdict]
    middle = len(spans) // 2
    low, high = _search(spans[:middle]), _search(spans[middle:])
    pivot = spans[middle].first
    if len(low) <= _JUMP_LIMIT:
        return [Instruction(BPF_JMP_JGE_K, len(low), 0, pivot), *low, *high]
    jump = Instruction(BPF_JMP_JA, 0, 0, len(low))
    return [Instruction(BPF_JMP_JGE_K, 0, 1, pivot), jump, *low, *high]


def _refuse(code: int) -> Instruction:
    return Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | code)


_ALLOW = Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW)
_LOAD = Instruction(BPF_LD_W_ABS, 0, 0, _OFFSET_FIRST_ARGUMENT)


def _one_of(values: Sequence[int], *, then: Instruction, otherwise: Instruction) -> list[Instruction]:
    # Each comparison jumps over those left and over `otherwise`.
    tests = [Instruction(BPF_JMP_JEQ_K, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [_LOAD, *tests, otherwise, then]


#: What stands at the end of a search, by verdict.
_LEAVES = {
    Verdict.ALLOW: [_ALLOW],
    Verdict.LOG: [Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_LOG)],
    Verdict.EPERM: [_refuse(errno.EPERM)],
    Verdict.ENOSYS: [_refuse(errno.ENOSYS)],
    Verdict.WITHOUT_NEW_NAMESPACES: [
        _LOAD,
        Instruction(BPF_JMP_JSET_K, 0, 1, seccomp_policy.CLONE_NEW_MASK),
        _refuse(errno.EPERM),
        _ALLOW,
    ],
    Verdict.LIMITED_PERSONALITY: _one_of(
        seccomp_policy.PERSONALITIES, then=_ALLOW, otherwise=_refuse(errno.EPERM)
    ),
    Verdict.LIMITED_FAMILY: _one_of(
        seccomp_policy.FAMILIES, then=_ALLOW, otherwise=_refuse(errno.EAFNOSUPPORT)
    ),
}

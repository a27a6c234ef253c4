# SPDX-License-Identifier: Apache-2.0
"""Every number of both architectures, run through the program, gives what the policy says."""

import errno
import struct
import time

import pytest

from insula.kernel import caps, seccomp, seccomp_policy, syscalls

ALLOW = seccomp.SECCOMP_RET_ALLOW
EPERM = seccomp.SECCOMP_RET_ERRNO | errno.EPERM
ENOSYS = seccomp.SECCOMP_RET_ERRNO | errno.ENOSYS
NO_FAMILY = seccomp.SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT
SETS = {
    "none": frozenset[str](),
    "default": caps.DEFAULT,
    "admin": caps.DEFAULT | {"SYS_ADMIN"},
    "all": caps.ALL,
}


def run(program: bytes, *, number: int, arch: int, first: int = 0) -> int:
    """Interpret a filter on one call, as the kernel does."""
    data = struct.pack("=iIQ6Q", number - (1 << 32 if number >> 31 else 0), arch, 0, first, 0, 0, 0, 0, 0)
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, jt, jf, k = code[at]
        at += 1
        match operation:
            case seccomp.BPF_LD_W_ABS:
                (accumulator,) = struct.unpack_from("=I", data, k)
            case seccomp.BPF_JMP_JA:
                at += k
            case seccomp.BPF_JMP_JEQ_K:
                at += jt if accumulator == k else jf
            case seccomp.BPF_JMP_JGE_K:
                at += jt if accumulator >= k else jf
            case seccomp.BPF_JMP_JSET_K:
                at += jt if accumulator & k else jf
            case seccomp.BPF_RET_K:
                return k
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


def expected(verdict: seccomp_policy.Verdict) -> int:
    refused = {
        seccomp_policy.Verdict.EPERM: EPERM,
        seccomp_policy.Verdict.ENOSYS: ENOSYS,
        seccomp_policy.Verdict.LIMITED_FAMILY: NO_FAMILY,
    }
    return refused.get(verdict, ALLOW)  # the other conditional ones allow a first argument of 0


@pytest.mark.parametrize("machine", syscalls.MACHINES)
@pytest.mark.parametrize("capabilities", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_every_number_gets_the_verdict_of_the_policy(
    machine: str, capabilities: frozenset[str], nested: bool
) -> None:
    program = seccomp.build_filter(capabilities, nested=nested, machine=machine)
    policy = seccomp_policy.for_capabilities(capabilities, nested=nested)
    names = {number: name for name, number in syscalls.numbers(machine).items()}
    for number in [*range(1024), 0x40000000, 0x40000001, 0xFFFFFFFF]:
        wanted = expected(policy.judge(names[number])) if number in names else ENOSYS
        got = run(program, number=number, arch=seccomp.AUDIT_ARCH[machine])
        assert got == wanted, f"{names.get(number)} ({number}): {got:#x}"


def verdict_of(name: str, first: int, *, capabilities: frozenset[str] = caps.DEFAULT) -> int:
    program = seccomp.build_filter(capabilities, machine="x86_64")
    number = syscalls.numbers("x86_64")[name]
    return run(program, number=number, arch=seccomp.AUDIT_ARCH["x86_64"], first=first)


@pytest.mark.parametrize(
    "name", ["mount", "bpf", "keyctl", "add_key", "io_uring_setup", "userfaultfd", "unshare", "setns"]
)
def test_what_reaches_the_host_is_refused(name: str) -> None:
    assert verdict_of(name, 0) == EPERM


def test_clone_may_make_threads_and_no_namespaces() -> None:
    assert verdict_of("clone", 0x3D0F00) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert verdict_of("clone", 17 | 1 << bit) == EPERM, hex(1 << bit)
    assert verdict_of("clone", 1 << 28, capabilities=caps.DEFAULT | {"SYS_ADMIN"}) == ALLOW
    assert verdict_of("clone3", 0) == ENOSYS


def test_families_and_personalities_are_limited() -> None:
    for name in ("socket", "socketpair"):
        assert [verdict_of(name, family) for family in (1, 2, 10, 16, 17)] == [ALLOW] * 5
        assert [verdict_of(name, family) for family in (0, 15, 38, 40, 44)] == [NO_FAMILY] * 5
    assert [verdict_of("personality", each) for each in (0, 8, 0xFFFFFFFF, 0x40000)] == [ALLOW] * 3 + [EPERM]


def test_other_architectures_do_not_exist() -> None:
    program = seccomp.build_filter(caps.ALL, machine="x86_64")
    for arch in (0x40000003, 0xC00000B7):
        assert run(program, number=0, arch=arch) == ENOSYS


def test_the_lists_name_only_calls_that_exist() -> None:
    known = {name for machine in syscalls.MACHINES for name in syscalls.numbers(machine)}
    by_capability = {name for names in seccomp_policy.BY_CAPABILITY.values() for name in names.split()}
    assert (seccomp_policy.ALWAYS | seccomp_policy.NESTED | by_capability) - known == set()
    assert seccomp_policy.ALWAYS & by_capability == set()


def test_building_is_quick_and_deterministic() -> None:
    first = seccomp.build_filter(caps.DEFAULT)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert seccomp.build_filter(caps.DEFAULT) == first
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005, times
    assert len(first) // 8 < 4096


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(LookupError, match="m68k"):
        seccomp.build_filter(caps.DEFAULT, machine="m68k")

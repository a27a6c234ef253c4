# SPDX-License-Identifier: Apache-2.0
"""What a seccomp filter refused, told by the end of the call alone: any filter's, and nothing that the kernel refused."""

import errno
import json
import os
import random
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from insula.kernel import caps, seccomp, syscalls
from insula.kernel.seccomp import Instruction
from insula.model.monitor import Event, EventKind, TraceLine, TraceWish
from insula.monitor.subscription import Subscription
from watched import Bench, both_ways, refuse_hooks

at_the_end = pytest.mark.parametrize("bench", [refuse_hooks], indirect=True)
MACHINE = os.uname().machine
NUMBERS = syscalls.numbers(MACHINE)
REFUSALS = TraceWish(kinds=(EventKind.SECCOMP,))
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
K, X, A = 0x00, 0x08, 0x10
ABS, IMM, MEM, LEN = 0x20, 0x00, 0x60, 0x80
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, XOR = (each << 4 for each in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10))
TAX, TXA = 0x00, 0x80
JA, JEQ, JGT, JGE, JSET = (each << 4 for each in range(5))
ALLOW, ERRNO = 0x7FFF0000, 0x50000
WORDS = 2
"""Of the scratch memory that programs use here."""
ASKED = "getppid"
"""Never fails, and is never 0: what the filter makes of it is seen."""
_CALLING = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
def call(number, *words):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_ulong, words))
    return -ctypes.get_errno() if result == -1 else result
def install(programs):
    libc.prctl(38, 1, 0, 0, 0)
    for program in map(bytes.fromhex, programs):
        assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) == 0, program
"""
_CASES = (
    _CALLING
    + """
for programs, calls in {cases!r}:
    if not (child := os.fork()):
        install(programs)
        print(json.dumps([call(*each) for each in calls]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
)


class Case(NamedTuple):
    """Calls that are made under filters."""

    programs: Sequence[bytes]
    calls: Sequence[tuple[int, ...]]


def packed(program: Sequence[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def answering(number: int, *answer: Instruction) -> bytes:
    """Return a filter that answers one call as the instructions say, and lets all others pass."""
    return packed([
        Instruction(LD | ABS, 0, 0, 0),
        Instruction(JMP | JEQ, 1, 0, number),
        Instruction(RET, 0, 0, ALLOW),
        *answer,
    ])  # fmt: skip


def made_each(bench: Bench, cases: Sequence[Case]) -> list[list[int]]:
    """Have calls made, each case's in a process of its own; returns their results."""
    given = [([each.hex() for each in case.programs], list(case.calls)) for case in cases]
    return [json.loads(line) for line in bench.python("one", _CASES.format(cases=given)).splitlines()]


def made(bench: Bench, programs: Sequence[bytes], calls: Sequence[tuple[int, ...]]) -> list[int]:
    (results,) = made_each(bench, [Case(programs, calls)])
    return results


def told(bench: Bench, watch: Subscription) -> list[Event]:
    """Return what was told until now."""
    bench.collector.catch_up()
    lines: list[TraceLine] = watch.read(at_most=10_000)
    assert all(isinstance(each, Event) for each in lines), lines
    return [each for each in lines if isinstance(each, Event)]


class Chance:
    """Makes up filters and arguments, the same for the same seed.  Hypothesis minds that the collector draws, too."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._below = self._random.randrange

    def word(self) -> int:
        """Return 32 bits; few different ones, so that they are equal now and then."""
        return self._random.choice(
            (self._below(4), self._below(4), 31, 32, 1 << 31, (1 << 32) - 1, self._below(1 << 32))
        )

    def call(self) -> tuple[int, ...]:
        return (NUMBERS[ASKED], *(self.word() | self._below(2) * self.word() << 32 for _ in range(6)))

    def filter(self) -> bytes:
        """Return a filter that answers one call by whatever it computes, and lets all others pass."""
        length = 1 + self._below(32)
        kept = [Instruction(ST, 0, 0, each) for each in range(WORDS)]
        body = [self._step(length - 1 - at) for at in range(length)]
        end = [
            Instruction(JMP | JSET, 1, 0, 1),
            Instruction(RET, 0, 0, ALLOW),
            Instruction(ALU | AND, 0, 0, 0xFFF),
            Instruction(ALU | OR, 0, 0, ERRNO),
            Instruction(RET | A, 0, 0, 0),
        ]
        return answering(NUMBERS[ASKED], *kept, *body, *end)

    def _step(self, left: int) -> Instruction:
        pick = self._random.choice
        scratch, source = self._below(WORDS), pick((K, X))
        compare = JMP | pick((JEQ, JGT, JGE, JSET)) | source
        return pick((
            Instruction(LD | ABS, 0, 0, self._below(16) * 4),
            Instruction(LD | ABS, 0, 0, 16 + self._below(12) * 4),
            Instruction(pick((LD, LDX)) | IMM, 0, 0, self.word()),
            *(Instruction(pick((LD, LDX)) | MEM, 0, 0, scratch) for _ in range(3)),
            *(Instruction(pick((ST, STX)), 0, 0, scratch) for _ in range(3)),
            Instruction(pick((LD, LDX)) | LEN, 0, 0, 0),
            Instruction(MISC | pick((TAX, TXA)), 0, 0, 0),
            Instruction(ALU | NEG, 0, 0, 0),
            Instruction(ALU | pick((ADD, SUB, MUL, OR, AND, XOR)) | source, 0, 0, self.word()),
            Instruction(ALU | pick((LSH, RSH)) | source, 0, 0, self._below(32)),
            Instruction(ALU | DIV, 0, 0, self.word() or 1),
            Instruction(JMP | JA, 0, 0, self._below(left + 1)),
            *(Instruction(compare, self._below(left + 1), self._below(left + 1), self.word()) for _ in range(4)),
            Instruction(RET, 0, 0, pick((ALLOW, ALLOW, ERRNO, ERRNO | 1, ERRNO | 0xFFFF))),
        ))  # fmt: skip


@at_the_end
@pytest.mark.parametrize("seed", range(10))
def test_whatever_filters_compute_is_told_as_the_kernel_does_it(
    bench: Bench, stack: ExitStack, seed: int
) -> None:
    watch = bench.watch(stack, "one", REFUSALS)
    chance = Chance(seed)
    cases = [
        Case([chance.filter() for _ in range(1 + turn % 3)], [chance.call() for _ in range(8)])
        for turn in range(30)
    ]
    results = [result for each in made_each(bench, cases) for result in each]
    assert any(each > 0 for each in results)
    assert any(each < 0 for each in results)
    assert [(each.call, each.result) for each in told(bench, watch)] == [
        (ASKED, each) for each in results if each <= 0
    ]


@both_ways
def test_what_our_own_filter_refuses_is_told_and_what_the_kernel_refuses_is_not(
    bench: Bench, stack: ExitStack
) -> None:
    """Of a container that may mount, by its filter: the kernel says EPERM to one without the right, and EINVAL to nonsense."""
    watch = bench.watch(stack, "one", REFUSALS)
    program = seccomp.build_filter(caps.DEFAULT | {"SYS_ADMIN"})
    new_user_and_fs = 0x10000200  # the kernel refuses both together
    calls = [
        ("io_uring_setup", 8, 0), ("socket", 38, 5, 0), ("personality", 0x40000), ("add_key", 0, 0, 0, 0, 0),
        ("setuid", 1), ("mount", 0, 0, 0, 0, 0), ("setns", 0, 0), ("socket", 2, 99, 0), ("personality", 0xFFFFFFFF),
        ("clone", new_user_and_fs, 0, 0, 0, 0), ("reboot", 0, 0, 0, 0), ("setgid", 1), ("sethostname", 0, 1),
    ]  # fmt: skip
    results = made(bench, [program], [(NUMBERS[name], *rest) for name, *rest in calls])
    kernel = {"setuid", "mount", "setns", "clone", "setgid", "sethostname"}
    assert -errno.EPERM in [
        result for (name, *_), result in zip(calls, results, strict=True) if name in kernel
    ]
    assert [(each.call, each.error) for each in told(bench, watch)] == [
        ("io_uring_setup", "EPERM"), ("socket", "EAFNOSUPPORT"), ("personality", "EPERM"), ("add_key", "EPERM"),
        ("reboot", "EPERM"),
    ]  # fmt: skip


@both_ways
def test_a_filter_on_top_of_ours_is_asked_first(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", REFUSALS)
    own = answering(NUMBERS["add_key"], Instruction(RET, 0, 0, ERRNO | errno.EXDEV))
    calls = [(NUMBERS[name], 0, 0, 0, 0, 0) for name in ("add_key", "keyctl", "getppid")]
    results = made(bench, [seccomp.build_filter(caps.DEFAULT), own], calls)
    assert results[:2] == [-errno.EXDEV, -errno.EPERM]
    assert [(each.call, each.error) for each in told(bench, watch)] == [
        ("add_key", "EXDEV"), ("keyctl", "EPERM"),
    ]  # fmt: skip


@both_ways
def test_a_filter_that_divides_by_nothing_kills_and_that_is_told(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", REFUSALS)
    program = answering(
        NUMBERS[ASKED],
        Instruction(LDX | IMM, 0, 0, 0),
        Instruction(ALU | DIV | X, 0, 0, 0),
        Instruction(RET, 0, 0, ALLOW),
    )
    text = _CALLING + f"install([{program.hex()!r}]); call({NUMBERS[ASKED]})"
    bench.python("one", text, code=-31)
    assert [each.call for each in told(bench, watch)] == [ASKED]


@both_ways
def test_the_end_of_a_signal_handler_is_no_refusal(bench: Bench, stack: ExitStack) -> None:
    """rt_sigreturn(2) gives back all registers: the number of the call is lost, and the result is of an earlier one."""
    watch = bench.watch(stack, "one", REFUSALS)
    program = answering(0xFFFFFFFF, Instruction(RET, 0, 0, ERRNO | errno.ESRCH))
    text = _CALLING + f"install([{program.hex()!r}])\n"
    text += "import os, signal; signal.signal(10, lambda *_: None)\n"
    text += (
        f"for _ in range(9): call({NUMBERS['kill']}, os.getpid(), 10); call({NUMBERS['tgkill']}, 1, 1, 99)\n"
    )
    bench.python("one", text)
    assert told(bench, watch) == []


@pytest.mark.skipif(MACHINE != "x86_64", reason="the processor has no 32-bit ABI to call by `int $0x80`")
@at_the_end
def test_the_filter_sees_the_arguments_of_another_abi(bench: Bench, stack: ExitStack) -> None:
    """getppid of i386 (64), refused if its second argument is 7."""
    watch = bench.watch(stack, "one", REFUSALS)
    program = packed([
        Instruction(LD | ABS, 0, 0, 4),
        Instruction(JMP | JEQ, 0, 5, 0x40000003),
        Instruction(LD | ABS, 0, 0, 0),
        Instruction(JMP | JEQ, 0, 3, 64),
        Instruction(LD | ABS, 0, 0, 24),
        Instruction(JMP | JEQ, 0, 1, 7),
        Instruction(RET, 0, 0, ERRNO | errno.EXDEV),
        Instruction(RET, 0, 0, ALLOW),
    ])  # fmt: skip
    text = (
        _CALLING
        + f"install([{program.hex()!r}])\n"
        + """
import mmap
for second in (6, 7):
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("53 b840000000 31db b9") + bytes([second, 0, 0, 0]) + bytes.fromhex("cd80 5b c3"))
    found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    print(found)
"""
    )
    *_, allowed, refused = bench.python("one", text).splitlines()
    if int(allowed) < 0:
        pytest.skip("the kernel has no calls of i386 (CONFIG_IA32_EMULATION)")
    assert int(refused) == -errno.EXDEV
    assert [(each.call, each.error) for each in told(bench, watch)] == [("syscall 511", "EXDEV")]


@at_the_end
def test_who_is_told_everything_has_nothing_at_the_entry_of_calls(bench: Bench, stack: ExitStack) -> None:
    bench.watch(stack, "one", TraceWish())
    assert "on_exit" in bench.collector.attached
    assert "on_enter" not in bench.collector.attached

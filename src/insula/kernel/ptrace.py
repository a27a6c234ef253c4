# SPDX-License-Identifier: Apache-2.0
"""Run system calls inside another process, from outside, so that it does not notice.

One of its threads is stopped, made to run a few calls, and goes on where it was: in its program, in a signal handler, in a
system call that sleeps (which the kernel restarts), or stopped as it was by SIGSTOP.  Its other threads run meanwhile.

    SEIZE (seccomp suspended) → INTERRUPT → trap: keep registers and signal mask → block all signals
      for each call: set registers at a `syscall` instruction → PTRACE_SYSCALL → entered → PTRACE_SYSCALL → left
    set back the registers → INTERRUPT → trap: set back the mask → DETACH

The last trap matters: only there, within its delivery of signals, does the kernel restart an interrupted call.  Calls that
the kernel does not restart but ends with EINTR (epoll_wait and others, see signal(7)) are wound back by us.

The kernel knows one *thread* as the tracer, and detaches all when that thread ends; so each `inside` has a thread of its own,
and a thread that does not stop before the deadline is let go by the end of ours.  The window: if this whole process dies
between the first `PTRACE_SYSCALL` and the last `SETREGS` (some 0.2 ms), the other thread goes on behind the `syscall`
instruction with our registers, and its program most probably crashes.  Before and after, it just goes on.

Out of scope: stopping a whole process; parasites.  Only 64-bit programs on x86_64 yet.
Sources: ptrace(2), signal(7); linux/ptrace.h; kernel/signal.c `get_signal`; CRIU's compel/arch/x86/src/lib/infect.c, which
also shows that a thread in a restartable sequence must be taken to its abort handler first.
"""

import contextlib
import errno
import os
import platform
import re
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from insula.kernel import libc

__all__ = ["Inside", "inside"]

Result = TypeVar("Result")

PTRACE_CONT = 7
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F
PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_SUSPEND_SECCOMP = 1 << 21
PTRACE_EVENT_STOP = 128
_SYSCALL_STOP = 5 | 0x80
"""SIGTRAP, marked by PTRACE_O_TRACESYSGOOD."""
WALL = 0x40000000
PIDFD_THREAD = os.O_EXCL
"""pidfd_open(2): a descriptor of a thread, since Linux 6.9; the threads of a process need not share their files."""

_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""struct user_regs_struct of x86_64, each 8 bytes."""
_REGISTERS_FORMAT = struct.Struct(f"={len(_REGISTERS)}Q")
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_CODE_SEGMENT_64 = 0x33
_NO_CALL = (1 << 64) - 1
_LAST_ERRNO = 4095
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_SYSCALL_BYTES = 2
_SIGNALS = struct.Struct("=Q")
_RSEQ_CONFIGURATION = struct.Struct("=QIIIxxxx")
_RSEQ_CS_OFFSET = 8
_RSEQ_SECTION = struct.Struct("=IIQQQ")
_SEARCHED_BYTES = 4 << 20
"""Of an executable mapping, in search of a `syscall` instruction; libc has one in its first pages."""
_FIRST_PAUSE_SECONDS = 0.00002
_LONGEST_PAUSE_SECONDS = 0.002
_RESTORE_SECONDS = 30.0
"""A thread that has our registers must get its own back, however loaded the machine is."""
_STOPS_AT_MOST = 64

_ENDED_BY_EINTR = {
    "read": 0,
    "readv": 19,
    "accept": 43,
    "recvfrom": 45,
    "recvmsg": 47,
    "semop": 65,
    "rt_sigtimedwait": 128,
    "io_getevents": 208,
    "semtimedop": 220,
    "epoll_wait": 232,
    "epoll_pwait": 281,
    "accept4": 288,
    "recvmmsg": 299,
    "io_pgetevents": 333,
    "epoll_pwait2": 441,
}
"""Calls of x86_64 that a stop may end with EINTR, having done nothing (signal(7), its last section but one)."""

_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \S+ *(.*)$", re.MULTILINE)


class Inside:
    """A stopped thread of another process.  Used only within `inside`."""

    def __init__(self, pid: int, tid: int, *, deadline: float) -> None:
        self.pid, self.tid = pid, tid
        self._deadline = deadline
        self._at_trap = False
        self._is_changed = False
        self._registers: dict[str, int] = {}
        self._mask = 0
        self._instruction = 0

    def call(self, name: str, *arguments: int) -> int:
        """Run a system call in the thread.  Returns: what it gives.  Raises: OSError with its errno, naming it."""
        registers = self._registers | dict(zip(_ARGUMENTS, arguments, strict=False))
        registers |= {"rax": libc.number_of(name), "orig_rax": _NO_CALL, "rip": self._instruction}
        self._is_changed = True
        self._set_registers(registers)
        self._run_to_syscall_stop()
        self._deadline = (
            time.monotonic() + _RESTORE_SECONDS
        )  # no way back now: a call that runs must come to its end
        self._run_to_syscall_stop()
        answer = self._get_registers()["rax"]
        if answer > _NO_CALL - _LAST_ERRNO:
            code = _NO_CALL - answer + 1
            raise OSError(code, f"{name}: {os.strerror(code)} (inside process {self.pid})")
        return answer

    def write(self, address: int, data: bytes) -> None:
        """Put data into the process's memory.  Raises: OSError if nothing is mapped there."""
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            if os.pwrite(memory.fileno(), data, address) != len(data):
                raise OSError(errno.EFAULT, f"pwrite: memory of process {self.pid}: cut short")

    def take(self, number: int) -> int:
        """Return a copy of a descriptor of the thread.  Raises: OSError."""
        try:
            pidfd = os.pidfd_open(self.tid, PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pidfd = os.pidfd_open(self.pid)
        try:
            return libc.pidfd_getfd(pidfd, number, 0)
        finally:
            os.close(pidfd)

    def stop(self) -> None:
        """Seize the thread and wait until it stands; keep what it must get back."""
        options = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP
        libc.ptrace(PTRACE_SEIZE, self.tid, None, options)
        libc.ptrace(PTRACE_INTERRUPT, self.tid, None, None)
        self._wait_trap(self._deadline)
        self._registers = self._get_registers()
        if self._registers["cs"] != _CODE_SEGMENT_64:
            raise OSError(errno.ENOSYS, f"ptrace: process {self.pid} runs a 32-bit program")
        self._instruction = _find_syscall_instruction(self.pid)
        self._mask = self._exchange_mask(_NO_CALL)
        self._is_changed = True
        self._leave_restartable_sequence()
        self._wind_back()

    def leave(self) -> None:
        """Give the thread back what it had and let it go."""
        if self._is_changed:
            self._set_registers_at_any_stop()
            if not self._at_trap:
                libc.ptrace(PTRACE_INTERRUPT, self.tid, None, None)
                libc.ptrace(PTRACE_CONT, self.tid, None, None)
                self._wait_trap(time.monotonic() + _RESTORE_SECONDS)
                self._set_registers(self._registers)
            self._exchange_mask(self._mask)
        if self._at_trap:
            libc.ptrace(PTRACE_DETACH, self.tid, None, None)

    def _set_registers_at_any_stop(self) -> None:
        # A thread that did not stop in time (this machine stood still, somebody froze it) still runs: stop it again.
        try:
            self._set_registers(self._registers)
        except ProcessLookupError:
            libc.ptrace(PTRACE_INTERRUPT, self.tid, None, None)
            self._wait_trap(time.monotonic() + _RESTORE_SECONDS)
            self._set_registers(self._registers)

    def _run_to_syscall_stop(self) -> None:
        self._at_trap = False
        for _ in range(_STOPS_AT_MOST):
            libc.ptrace(PTRACE_SYSCALL, self.tid, None, None)
            if self._wait_stop(self._deadline) == _SYSCALL_STOP:
                return
        raise OSError(errno.EAGAIN, f"ptrace: thread {self.tid} does not run our call")

    def _wait_trap(self, deadline: float) -> None:
        # Signals that were being delivered come first, and are passed on; none can once all are blocked.
        for _ in range(_STOPS_AT_MOST):
            status = self._wait_stop(deadline)
            if status >> 8 == PTRACE_EVENT_STOP:
                self._at_trap = True
                return
            signal_number = status if status != _SYSCALL_STOP else 0
            libc.ptrace(PTRACE_CONT, self.tid, None, signal_number)
        raise OSError(errno.EAGAIN, f"ptrace: thread {self.tid} does not come to our stop")

    def _wait_stop(self, deadline: float) -> int:
        # Nothing can be polled for the stop of a thread that is no child of ours.  Only stops are taken, never an end.
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                found = os.waitid(os.P_PID, self.tid, os.WSTOPPED | os.WNOHANG | WALL)
            except ChildProcessError:
                raise self._has_ended() from None
            if found is not None:
                return found.si_status
            if pause >= _LONGEST_PAUSE_SECONDS and _state_of(self.pid, self.tid) in "ZX":
                raise self._has_ended()
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"ptrace: thread {self.tid} does not stop")
            select.select((), (), (), pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _has_ended(self) -> ProcessLookupError:
        return ProcessLookupError(errno.ESRCH, f"ptrace: thread {self.tid} has ended")

    def _get_registers(self) -> dict[str, int]:
        buffer = bytearray(_REGISTERS_FORMAT.size)
        libc.ptrace(PTRACE_GETREGS, self.tid, None, libc.address_of(buffer))
        return dict(zip(_REGISTERS, _REGISTERS_FORMAT.unpack(buffer), strict=True))

    def _set_registers(self, registers: dict[str, int]) -> None:
        buffer = _REGISTERS_FORMAT.pack(*(registers[name] for name in _REGISTERS))
        libc.ptrace(PTRACE_SETREGS, self.tid, None, libc.address_of(buffer))

    def _exchange_mask(self, mask: int) -> int:
        # Where a call has exchanged the mask for its time (ppoll, sigsuspend), the kernel gives the program's own, and
        # the restarted call exchanges it again (since Linux 5.2).
        before, after = bytearray(_SIGNALS.size), _SIGNALS.pack(mask)
        libc.ptrace(PTRACE_GETSIGMASK, self.tid, _SIGNALS.size, libc.address_of(before))
        libc.ptrace(PTRACE_SETSIGMASK, self.tid, _SIGNALS.size, libc.address_of(after))
        return int(_SIGNALS.unpack(before)[0])

    def _wind_back(self) -> None:
        """Have a call run again that our stop, and no signal, ended with EINTR."""
        registers = self._registers
        is_ended = registers["rax"] == _NO_CALL + 1 - errno.EINTR
        if not is_ended or registers["orig_rax"] not in _ENDED_BY_EINTR.values():
            return
        if _pending_signals(self.pid, self.tid) & ~self._mask:
            return
        registers["rip"] -= _SYSCALL_BYTES
        registers["rax"] = registers["orig_rax"]
        registers["orig_rax"] = _NO_CALL

    def _leave_restartable_sequence(self) -> None:
        """Take a thread within a restartable sequence to its abort handler, as the kernel does after any stop."""
        configuration = bytearray(_RSEQ_CONFIGURATION.size)
        try:
            libc.ptrace(
                PTRACE_GET_RSEQ_CONFIGURATION, self.tid, len(configuration), libc.address_of(configuration)
            )
        except OSError:  # Linux before 5.13, or no rseq in this kernel
            return
        area = _RSEQ_CONFIGURATION.unpack(configuration)[0]
        section = area and int.from_bytes(_read(self.pid, area + _RSEQ_CS_OFFSET, length=8), "little")
        if not section:
            return
        _, _, start, length, abort = _RSEQ_SECTION.unpack(_read(self.pid, section, length=_RSEQ_SECTION.size))
        if start <= self._registers["rip"] < start + length:
            self._registers["rip"] = abort


def inside(pid: int, act: Callable[[Inside], Result], *, deadline_seconds: float = 1.0) -> Result:
    """Stop a thread of a process, let `act` run system calls in it, and let it go on.

    Raises: OSError: ESRCH if the process is gone, ETIMEDOUT if no thread of it stops in time (it waits uninterruptibly),
    EPERM if somebody else traces it, ENOSYS for 32-bit programs and other processors; what `act` raises.
    """
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"ptrace: calls inside a process are not known on {platform.machine()}")
    work = _Work(pid, act, deadline=time.monotonic() + deadline_seconds)
    work.start()
    work.join()
    return work.get()


class _Work(threading.Thread, Generic[Result]):
    """The tracer: a thread that does nothing else and ends, whereupon the kernel lets go whatever it still holds."""

    def __init__(self, pid: int, act: Callable[[Inside], Result], *, deadline: float) -> None:
        super().__init__(name=f"ptrace-{pid}", daemon=True)
        self._pid, self._act, self._deadline = pid, act, deadline
        self._results: list[Result] = []
        self._failure: OSError | None = None

    def run(self) -> None:
        try:
            stopped = Inside(self._pid, _choose_thread(self._pid), deadline=self._deadline)
            with contextlib.ExitStack() as stack:
                stack.callback(stopped.leave)
                stopped.stop()
                self._results.append(self._act(stopped))
        except OSError as error:
            self._failure = error

    def get(self) -> Result:
        if self._failure is not None:
            raise self._failure
        return self._results[0]


def _choose_thread(pid: int) -> int:
    """Return the thread that will stop soonest: the first one unless it has ended or waits uninterruptibly (vfork)."""
    threads = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    ranked = [(_rank(_state_of(pid, tid)), tid != pid, tid) for tid in threads]
    rank, _, tid = min(ranked)
    if rank == _RANK_DEAD:
        raise ProcessLookupError(errno.ESRCH, f"ptrace: process {pid} has ended")
    if rank == _RANK_STUCK:
        raise TimeoutError(errno.ETIMEDOUT, f"ptrace: process {pid} waits uninterruptibly")
    return tid


_RANK_STUCK, _RANK_DEAD = 1, 2


def _rank(state: str) -> int:
    return _RANK_DEAD if state in "ZX" else _RANK_STUCK if state == "D" else 0


def _state_of(pid: int, tid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return chr(line[line.rindex(b")") + 2])


def _pending_signals(pid: int, tid: int) -> int:
    status = Path(f"/proc/{pid}/task/{tid}/status").read_text(encoding="utf-8", errors="replace")
    found: Sequence[str] = re.findall(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", status, re.MULTILINE)
    pending = 0
    for mask in found:
        pending |= int(mask, 16)
    return pending


def _find_syscall_instruction(pid: int) -> int:
    """Return the address of a `syscall` instruction: the vdso's, or one of any executable mapping."""
    mappings = [
        (int(start, 16), int(end, 16), name)
        for start, end, mode, name in _MAPPING.findall(Path(f"/proc/{pid}/maps").read_bytes())
        if mode[2:3] == b"x" and name != b"[vsyscall]"
    ]
    for start, end, _ in sorted(mappings, key=lambda each: each[2] != b"[vdso]"):
        offset = _read(pid, start, length=min(end - start, _SEARCHED_BYTES)).find(_SYSCALL_INSTRUCTION)
        if offset >= 0:
            return start + offset
    raise OSError(errno.ENOSYS, f"ptrace: process {pid} has no system call instruction")


def _read(pid: int, address: int, *, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        try:
            return os.pread(memory.fileno(), length, address)
        except OSError:
            return bytes(length)

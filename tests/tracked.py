# SPDX-License-Identifier: Apache-2.0
"""For tests of memory tracking: a Python program that does what it is told, and how to look at it."""

import contextlib
import os
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from insula.kernel.pagemap import PAGE_BYTES, Range, intersect
from insula.kernel.trials import memory
from waiting import DEADLINE_S, wait_until


def has_userfault() -> bool:
    try:
        memory.userfaultfd_wp_async()
    except OSError:
        return False
    return platform.machine() == "x86_64"


PUPPET = """
import ctypes, mmap, os, random, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
P = 4096
def new(pages, at=None):
    address = libc.mmap(at, pages * P, 3, 0x22 | (0x10 if at else 0), -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    return address
def put(address, page, value=b"x"):
    ctypes.memmove(address + page * P + 8, value, len(value))
def fill(address, pages, value=b"full"):
    for page in range(pages): put(address, page, value + b"%d" % page)
def ok(answer): assert answer != -1, os.strerror(ctypes.get_errno())
def spawn():
    pid = os.fork()
    if pid == 0:
        signal.pause() if False else None
        while True: time.sleep(3600)
    return pid
scope = globals()
while True:
    line = sys.stdin.readline()
    if not line: break
    try: exec(compile(line.replace(chr(1), chr(10)), "line", "exec"), scope); answer = scope.pop("result", None)
    except BaseException as error: answer = "failed: %r" % error
    print(repr(answer), flush=True)
"""


class Puppet:
    """A Python program that does what it is told."""

    def __init__(self, *, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-S", "-c", PUPPET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def tell(self, code: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(code.replace("\n", "\x01") + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert ready, "the program does not answer"
        line = self.process.stdout.readline().strip()
        assert line and "failed:" not in line, line or "the program ended"
        return line

    def do(self, code: str) -> str:
        self.tell(code)
        return self.hear()

    def number(self, expression: str) -> int:
        return int(self.do(f"result = {expression}"))

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, self.pid, os.WSTOPPED) is not None
        for pid in children(self.pid):  # they may be on their way to their first sleep
            os.kill(pid, signal.SIGSTOP)
            wait(lambda pid=pid: is_in_state(pid, "T"))

    def end(self) -> None:
        if self.process.poll() is None:
            for pid in (*children(self.pid), self.pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def pages_within(ranges: Iterable[Range], start: int, *, pages: int) -> set[int]:
    return {
        (address - start) // PAGE_BYTES
        for each in intersect(tuple(ranges), (Range(start, pages),))
        for address in range(each.start, each.end, PAGE_BYTES)
    }


def is_in_state(pid: int, state: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].startswith(state)


def wait(condition: Callable[[], bool]) -> None:
    wait_until(condition, what="the condition")

# SPDX-License-Identifier: Apache-2.0
"""A program does not notice that its memory is tracked: what it waits for, its signals, its descriptors, its filters."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.kernel import ptrace, userfault
from insula.migrate import track
from insula.migrate.track import Tracker
from tracked import Puppet, children, has_userfault, is_in_state, pages_within, wait
from waiting import DEADLINE_S

pytestmark = pytest.mark.skipif(not has_userfault(), reason="no userfaultfd WP_ASYNC in this kernel")
UNIFIED = next(path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if path.is_dir())


@pytest.fixture
def tracker(puppet: Puppet) -> Iterator[Tracker]:
    with contextlib.closing(track.open_tracker(lambda: (puppet.pid, *children(puppet.pid)))) as made:
        assert made.kind == "userfaultfd"
        yield made


def _settled(tracker: Tracker) -> None:
    for _ in range(3):
        tracker.scan()


def test_nothing_of_ours_stays(puppet: Puppet, tracker: Tracker) -> None:
    def watched() -> bool:
        return bool(re.search(r"^VmFlags:.* uw", Path(f"/proc/{puppet.pid}/smaps").read_text(), re.MULTILINE))

    before = _state(puppet.pid)
    _settled(tracker)
    assert watched()
    assert _state(puppet.pid) == before
    tracker.close()
    assert not watched()
    assert _state(puppet.pid) == before
    assert puppet.number("40 + 2") == 42


def test_a_process_that_dies_under_our_hands_leaves_no_descriptor_behind(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = ptrace.Inside.take

    def take_and_kill(inside: ptrace.Inside, number: int) -> int:
        handle = take(inside, number)
        os.kill(puppet.pid, signal.SIGKILL)
        return handle

    monkeypatch.setattr(ptrace.Inside, "take", take_and_kill)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="ptrace"):
        userfault.open_in(puppet.pid)
    assert os.listdir("/proc/self/fd") == before


def _state(pid: int) -> tuple[object, ...]:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    kept = re.findall(
        r"^(?:TracerPid|SigPnd|SigBlk|SigIgn|SigCgt|ShdPnd|Seccomp\w*|Threads|FDSize):.*$",
        status,
        re.MULTILINE,
    )
    return sorted(os.listdir(f"/proc/{pid}/fd")), kept


WAITS = {
    "nanosleep": "libc.usleep(1000000)",
    "read": (
        "(lambda r, w: (threading.Timer(1.0, os.write, (w, b'x')).start(),"
        " libc.read(r, ctypes.create_string_buffer(9), 1) - 1)[1])(*os.pipe())"
    ),
    "poll": "libc.poll(None, 0, 1000)",
    "select": "libc.select(0, None, None, None, ctypes.byref((ctypes.c_long * 2)(1, 0)))",
    "epoll_wait": "libc.epoll_wait(libc.epoll_create1(0), ctypes.create_string_buffer(99), 1, 1000)",
    "futex": (
        "libc.syscall(202, ctypes.byref(ctypes.c_int(7)), 0, 7, ctypes.byref((ctypes.c_long * 2)(1, 0)), 0, 0)"
        " + (1 if ctypes.get_errno() == 110 else 100)"
    ),
    "sigtimedwait": (
        "libc.sigtimedwait(ctypes.byref((ctypes.c_long * 16)(1 << 11)), None,"
        " ctypes.byref((ctypes.c_long * 2)(1, 0))) + (1 if ctypes.get_errno() == 11 else 100)"
    ),
    "waitpid": "(lambda pid: libc.waitpid(pid, None, 0) - pid)(os.posix_spawn('/bin/sleep', ['sleep', '1'], {}))",
}


@pytest.mark.parametrize("waiting", WAITS.values(), ids=WAITS.keys())
def test_a_waiting_program_waits_on(puppet: Puppet, waiting: str) -> None:
    puppet.tell(
        f"began = time.monotonic(); value = {waiting}; result = (value, time.monotonic() - began > 0.95)"
    )
    wait(lambda: _sleeps(puppet.pid))
    for _ in range(10):
        os.close(userfault.open_in(puppet.pid))
    assert puppet.hear() == "(0, True)"


def _sleeps(pid: int) -> bool:
    # In a call that waits, and not for its next order.
    words = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
    return is_in_state(pid, "S") and len(words) > 2 and not (words[0] == "0" and words[1] == "0x0")


def test_sigsuspend_waits_on_and_its_mask_stays(puppet: Puppet) -> None:
    puppet.do(
        "got = []; signal.signal(10, lambda *a: got.append(10)); signal.pthread_sigmask(0, [10, 12]);"
        "old = (ctypes.c_long * 16)(1 << 11)"
    )
    before = _state(puppet.pid)[1]
    puppet.tell("value = libc.sigsuspend(ctypes.byref(old)); result = (value, ctypes.get_errno(), got)")
    wait(lambda: Path(f"/proc/{puppet.pid}/syscall").read_text().startswith("130 "))
    for _ in range(5):
        os.close(userfault.open_in(puppet.pid))
        wait(lambda: Path(f"/proc/{puppet.pid}/syscall").read_text().startswith("130 "))
    os.kill(puppet.pid, 12)  # blocked in the call's mask and in the program's: stays pending
    os.close(userfault.open_in(puppet.pid))
    wait(lambda: Path(f"/proc/{puppet.pid}/syscall").read_text().startswith("130 "))
    os.kill(puppet.pid, 10)
    assert puppet.hear() == "(-1, 4, [10])"
    puppet.do("signal.signal(12, signal.SIG_IGN)")
    assert [line for line in _state(puppet.pid)[1] if "SigBlk" in line] == [  # type: ignore[attr-defined]
        line
        for line in before  # type: ignore[attr-defined]
        if "SigBlk" in line
    ]


def test_signals_that_come_meanwhile_are_neither_lost_nor_doubled(puppet: Puppet) -> None:
    # The handler of C writes a byte for each signal that comes, and signals of that number queue.
    puppet.do(
        "r, w = os.pipe2(os.O_NONBLOCK); signal.set_wakeup_fd(w, warn_on_full_buffer=False); seen = [0];"
        "signal.signal(34, lambda *_: None)"
    )
    counted = "(seen.__setitem__(0, seen[0] + len(os.read(r, 9999) if select.select([r], [], [], 0)[0] else b'')), seen[0])[1]"
    puppet.do("import select")
    for _ in range(200):
        os.kill(puppet.pid, 34)
        os.close(userfault.open_in(puppet.pid))
        os.kill(puppet.pid, 34)
    wait(lambda: puppet.number(counted) >= 400)
    assert puppet.number(counted) == 400


def test_a_program_that_computes_computes_right(puppet: Puppet) -> None:
    code = (
        "import hashlib\nx = b''; f = 0.0\n"
        "for i in range(150000):\n x = hashlib.sha256(x).digest(); f = f * 1.0000001 + i\n"
        "result = (x.hex(), f)"
    )
    expected = puppet.do(code)
    puppet.tell(code)
    for _ in range(100):
        os.close(userfault.open_in(puppet.pid))
    assert puppet.hear() == expected


def test_a_stopped_process_is_tracked_and_stays_stopped(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(50)")
    puppet.do(f"fill({start}, 50)")
    puppet.stop()
    assert len(pages_within(tracker.scan()[puppet.pid], start, pages=50)) == 50
    wait(lambda: is_in_state(puppet.pid, "T"))
    assert os.waitid(os.P_PID, puppet.pid, os.WCONTINUED | os.WNOHANG) is None
    os.kill(puppet.pid, signal.SIGCONT)
    puppet.do(f"put({start}, 3)")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=50) == {3}


def test_a_frozen_process_counts_whole_and_is_unharmed(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(50)")
    puppet.do(f"fill({start}, 50)")
    group = UNIFIED / f"insula-test-track-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(puppet.pid), encoding="ascii")
        (group / "cgroup.freeze").write_text("1", encoding="ascii")
        wait(lambda: "frozen 1" in (group / "cgroup.events").read_text(encoding="ascii"))
        for _ in range(2):
            assert len(pages_within(tracker.scan()[puppet.pid], start, pages=50)) == 50
        (group / "cgroup.freeze").write_text("0", encoding="ascii")
        for _ in range(3):
            tracker.scan()
        puppet.do(f"put({start}, 3)")
        assert pages_within(tracker.scan()[puppet.pid], start, pages=50) == {3}
    finally:
        puppet.end()
        wait(lambda: "populated 0" in (group / "cgroup.events").read_text(encoding="ascii"))
        group.rmdir()


def test_a_process_that_somebody_else_traces_counts_whole(puppet: Puppet, tracker: Tracker) -> None:
    start = puppet.number("new(50)")
    puppet.do(f"fill({start}, 50)")

    def look(_: ptrace.Inside) -> None:
        for _ in range(3):
            assert len(pages_within(tracker.scan()[puppet.pid], start, pages=50)) == 50

    ptrace.inside(puppet.pid, look)
    for _ in range(4):
        tracker.scan()
    puppet.do(f"put({start}, 3)")
    assert pages_within(tracker.scan()[puppet.pid], start, pages=50) == {3}


SECCOMP = """
import struct
libc.prctl(38, 1, 0, 0, 0)
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 323), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7fff0000)]
program = b"".join(struct.pack("HBBI", *each) for each in code); buffer = ctypes.create_string_buffer(program)
ok(libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer)), 0, 0))
"""


def test_a_filter_that_kills_for_userfaultfd_does_not(puppet: Puppet, tracker: Tracker) -> None:
    puppet.do(SECCOMP)
    assert puppet.pid in tracker.scan()
    before = _state(puppet.pid)
    _settled(tracker)
    assert _state(puppet.pid) == before
    puppet.tell("libc.syscall(323, 0)")
    assert puppet.process.wait(DEADLINE_S) == -signal.SIGSYS, "the filter holds afterwards"


def test_processes_that_are_no_more_are_named() -> None:
    with pytest.raises(OSError, match="No such"):
        ptrace.inside((1 << 22) + 5, lambda _: None)

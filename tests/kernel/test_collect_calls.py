# SPDX-License-Identifier: Apache-2.0
"""The collector's events of system calls: the same told at their functions, where the kernel lets us, and at their ends."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from insula.kernel import call_functions
from insula.model.monitor import Event, EventKind, TraceWish
from insula.monitor.call_hooks import KINDS, CallPrograms
from insula.monitor.layout import Kind
from insula.monitor.probes import Probes
from insula.monitor.subscription import Scope
from searched import found_below
from waiting import DEADLINE_S, wait_until
from watched import Bench, both_ways, made_bench, refuse_hooks


@both_ways
def test_files_are_seen_with_paths_flags_and_errors(bench: Bench, stack: ExitStack, tmp_path: object) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.FILE,), paths=(f"{tmp_path}/*",)))
    bench.python("one", f"""
import os
os.chdir({str(tmp_path)!r})
a, b = {str(tmp_path)!r} + "/a", {str(tmp_path)!r} + "/b"
open(a, "w").close(); os.rename(a, b); os.mkdir(a); os.rmdir(a); os.unlink(b)
try: open(b)
except FileNotFoundError: pass
os.symlink(b, a); os.unlink(a); os.mkfifo(a)
""")  # fmt: skip
    lines = bench.until(watch, lambda each: each.call in ("mknod", "mknodat"))
    events = [each for each in lines if isinstance(each, Event)]
    found = [
        (each.call.removesuffix("at").removesuffix("at2"), each.path[-1], each.other_path[-1:])
        for each in events
    ]
    assert found == [
        ("open", "a", ""), ("rename", "a", "b"), ("mkdir", "a", ""), ("rmdir", "a", ""), ("unlink", "b", ""),
        ("open", "b", ""), ("symlink", "a", "b"), ("unlink", "a", ""), ("mknod", "a", ""),
    ]  # fmt: skip
    assert "O_WRONLY|O_CREAT" in events[0].detail
    assert (events[0].error, events[5].error, events[5].result) == ("", "ENOENT", -2)


@both_ways
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_connections_are_seen_with_addresses(bench: Bench, stack: ExitStack, family: str) -> None:
    if family == "AF_INET6" and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("the kernel has no IPv6 (CONFIG_IPV6)")
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.NETWORK,)))
    host = "::1" if family == "AF_INET6" else "127.0.0.1"
    bench.python("one", f"""
import socket
s = socket.socket(socket.{family}); s.bind(({host!r}, 0)); s.listen()
c = socket.socket(socket.{family}); c.connect(s.getsockname())
a, _ = s.accept()
try: socket.create_connection(({host!r}, 1))
except OSError: pass
""")  # fmt: skip
    shown = f"[{host}]" if family == "AF_INET6" else host
    lines = bench.until(watch, lambda each: each.error == "ECONNREFUSED")
    events = {each.call: each for each in lines if isinstance(each, Event)}
    assert events["bind"].address == f"{shown}:0"
    assert events["accept4"].address.startswith(f"{shown}:")
    assert events["connect"].address == f"{shown}:1"


@both_ways
def test_unix_sockets_are_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.NETWORK,)))
    name = f"insula-test-{uuid.uuid4().hex}"
    bench.python("one", f"import socket; socket.socket(socket.AF_UNIX).bind('\\0{name}')")
    assert bench.seen(watch, lambda each: each.call == "bind").address == f"unix:@{name}"


@both_ways
def test_a_mount_is_seen_also_if_it_fails(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.MOUNT,), errors=("any",)))
    bench.run("one", ["mount", "-t", "tmpfs", "none", "/nonexistent-insula"], code=None)
    event = bench.seen(watch, lambda each: "nonexistent-insula" in each.path)
    assert event.error == "ENOENT"


@both_ways
def test_an_identity_change_and_its_capability_are_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.IDENTITY, EventKind.CAPABILITY)))
    bench.python("one", "import os; os.setgid(1); os.setuid(1)")
    lines = bench.until(watch, lambda each: each.call == "setuid")
    told = {each.call or each.detail for each in lines if isinstance(each, Event)}
    assert {"setgid", "setuid"} <= told
    if not bench.collector.missing:
        assert {"SETGID granted", "SETUID granted"} <= told


@both_ways
def test_what_only_attackers_need_is_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.KERNEL,)))
    bench.python("one", "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)")  # PTRACE_TRACEME
    assert bench.seen(watch, lambda each: each.call == "ptrace").result == 0


FILTERED = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("=HBBIHBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 1, 0, {number}, 0x15, 0, 1, 258, 6, 0, 0, {action:#x}, 6, 0, 0, 0x7fff0000)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(5, code))) == 0
{call}
if ctypes.get_errno() != 1: raise SystemExit(5)
"""
"""A filter by hand: a call is answered, the rest is allowed.  Source: linux/seccomp.h."""
MKDIR = {"number": 83, "call": 'libc.mkdir(b"/tmp/insula-never", 0)'}
MOUNT = {"number": 165, "call": 'libc.mount(b"none", b"/tmp/insula-never", b"tmpfs", 0, None)'}
REFUSE, TRAP, KILL = 0x50001, 0x30000, 0x80000000


@both_ways
@pytest.mark.parametrize(("action", "code", "error"), [
    (REFUSE, 0, "EPERM"), (TRAP, -signal.SIGSYS, ""), (KILL, -signal.SIGSYS, ""),
], ids=["refused", "trapped", "killed"])  # fmt: skip
def test_what_a_filter_answers_is_seen(
    bench: Bench, stack: ExitStack, action: int, code: int, error: str
) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SECCOMP,)))
    bench.python("one", FILTERED.format(action=action, **MKDIR), code=code)
    event = bench.seen(watch, lambda each: each.kind is EventKind.SECCOMP)
    assert (event.call, event.error, event.path) == ("mkdir", error, "/tmp/insula-never")


class SilentPrograms(CallPrograms):
    """Programs at calls as kernels have them that let us, which tell nothing: what is told comes from `sys_exit`."""

    def __init__(self, may_attach: threading.Event) -> None:
        self._may_attach = may_attach

    def needed(self, kinds: Iterable[Kind]) -> frozenset[str]:
        return frozenset({"after_any"} if KINDS.intersection(kinds) else ())

    def attach(self, program: str) -> None:
        self._may_attach.wait(DEADLINE_S)

    def detach(self, program: str) -> None: ...

    def keep(self) -> None: ...

    def is_leaving(self) -> bool:
        return False

    def close(self, *, at_once: bool) -> None: ...


@pytest.fixture
def may_attach() -> threading.Event:
    """Set: the programs at the calls come into place."""
    return threading.Event()


@pytest.fixture
def silent(may_attach: threading.Event) -> Iterator[Bench]:
    with made_bench(lambda _: SilentPrograms(may_attach)) as made:
        yield made
        may_attach.set()


_CALLING = """
import os, time
while True: time.sleep(0.001); os.getppid()
"""


def test_only_refusals_are_told_whichever_programs_come_and_go(
    silent: Bench, stack: ExitStack, may_attach: threading.Event
) -> None:
    """Of who is also counted: the end of calls is traced all the time, their entry in a part of it."""
    one, collector = silent.subjects["one"], silent.collector

    def calls() -> int:
        (counts,) = collector.counts([one])
        return sum(each.calls for each in counts.calls if each.call == "getppid")

    def wait_traced(*, is_traced: bool) -> None:
        wait_until(lambda: ("on_enter" in collector.attached) is is_traced, what="a look comes and goes")

    words = [sys.executable, "-SIc", _CALLING]
    looping = stack.enter_context(
        subprocess.Popen(words, preexec_fn=lambda: one.group.attach(os.getpid()), stdout=subprocess.DEVNULL)
    )
    stack.callback(looping.kill)
    stack.enter_context(collector.counting(one))
    wish = TraceWish(kinds=(EventKind.SECCOMP,))
    watch = stack.enter_context(collector.subscribe(one, wish, notify=silent.ready.set))
    silent.python("one", FILTERED.format(action=REFUSE, **MKDIR))
    assert silent.seen(watch, lambda each: True).call == "mkdir"
    may_attach.set()
    for is_traced in (False, True, False):
        wait_traced(is_traced=is_traced)
        begin = calls()
        wait_until(lambda begin=begin: calls() > begin + 10, what="it makes calls")
    stack.enter_context(collector.subscribe(one, wish, notify=silent.ready.set))  # a new watch
    begin = calls()
    wait_until(lambda: calls() > begin + 10, what="it makes calls")
    collector.catch_up()
    assert watch.read(at_most=10) == []


@pytest.mark.parametrize("bench", [refuse_hooks], indirect=True)
def test_a_call_in_the_middle_of_which_a_watch_begins_is_no_refusal(bench: Bench, stack: ExitStack) -> None:
    """While another container's watch has the end of calls traced all the time."""
    wish = TraceWish(kinds=(EventKind.SECCOMP,))
    bench.watch(stack, "other", wish)
    with bench.answering("one") as answer:
        for _ in range(3):  # not watched in between
            with ExitStack() as watching:
                watch = bench.watch(watching, "one", wish)
                answer()
                bench.watch(watching, "one", wish)
                answer()
                answer()
                bench.collector.catch_up()
                assert watch.read(at_most=10) == []
            answer()


@both_ways
def test_who_does_not_ask_for_refusals_is_told_what_was_tried(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.MOUNT,)))
    bench.python("one", FILTERED.format(action=REFUSE, **MOUNT))
    event = bench.seen(watch, lambda each: each.call == "mount")
    assert (event.kind, event.error, event.path) == (EventKind.MOUNT, "EPERM", "/tmp/insula-never")


@both_ways
def test_an_accept_that_waits_is_seen_each_time_that_it_returns(bench: Bench, stack: ExitStack) -> None:
    """A signal's handler has it return in between, and begin again."""
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.NETWORK,), calls=("accept4", "connect")))
    bench.python("one", """
import os, signal, socket, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
if not (child := os.fork()):
    signal.signal(signal.SIGUSR1, lambda *_: print("again", flush=True))
    signal.siginterrupt(signal.SIGUSR1, False)
    s.accept()
    os._exit(0)
def wait_waiting():
    while open(f"/proc/{child}/syscall").read().split()[0] != "288": time.sleep(0.01)
wait_waiting()
os.kill(child, signal.SIGUSR1)
while "again" and open(f"/proc/{child}/status").read().split("SigPnd:")[1].split()[0].strip("0"): time.sleep(0.01)
wait_waiting()
c = socket.create_connection(s.getsockname())
os.waitpid(child, 0)
""")  # fmt: skip
    lines = bench.until(watch, lambda each: each.call == "accept4" and each.address != "")
    told = [(each.call, each.result < 0) for each in lines if isinstance(each, Event)]
    assert told[0] == ("accept4", True), told
    assert sorted(told[1:]) == [("accept4", False), ("connect", False)]


def can_hook() -> bool:
    try:
        call_functions.try_hook()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("kinds", "is_filter_asked"), [
    ((EventKind.FILE,), False), ((EventKind.FILE, EventKind.SECCOMP), True),
])  # fmt: skip
def test_events_of_calls_cost_nobody_else_where_the_kernel_lets_us(
    bench: Bench, stack: ExitStack, kinds: tuple[EventKind, ...], is_filter_asked: bool
) -> None:
    bench.watch(stack, "one", TraceWish(kinds=kinds))
    if can_hook():
        at_all_calls = {"on_enter", "on_exit"}
        wait_until(lambda: not bench.collector.attached & at_all_calls, what="they are attached")
        assert "after_openat" in bench.collector.attached
        assert "after_connect" not in bench.collector.attached
        assert ("after_denial" in bench.collector.attached) is is_filter_asked
    else:
        assert "on_exit" in bench.collector.attached
        assert "after_openat" not in bench.collector.attached


@pytest.mark.parametrize("bench", [refuse_hooks], indirect=True)
def test_where_programs_cannot_be_hung_at_calls_their_ends_are_seen(bench: Bench, stack: ExitStack) -> None:
    bench.watch(stack, "one", TraceWish(kinds=(EventKind.FILE,)))
    assert bench.collector.attached == {"on_exit", "on_move"}


def test_who_ends_at_once_is_in_nobodys_way(bench: Bench) -> None:
    for _ in range(2):
        probes = Probes(ring_bytes=1 << 20)
        try:
            probes.watch(bench.subjects["one"].cgroup, frozenset({Kind.MOUNT}))
            is_at_calls = probes.calls.wait_settled(deadline=time.monotonic() + DEADLINE_S)
            assert is_at_calls == can_hook(), probes.calls.why_not
        finally:
            probes.close(at_once=True)


def test_what_is_wanted_again_while_it_goes_is_seen(bench: Bench, tmp_path: Path) -> None:
    for turn in range(3):
        with ExitStack() as watching:
            wish = TraceWish(kinds=(EventKind.MOUNT,), paths=(f"{tmp_path}/*",))
            watch = bench.watch(watching, "one", wish)
            if turn == 1:
                assert bench.collector.wait_settled(deadline=time.monotonic() + DEADLINE_S) == can_hook()
            bench.python(
                "one", f"import ctypes; ctypes.CDLL(None).umount2({f'{tmp_path}/{turn}'!r}.encode(), 0)"
            )
            bench.until(watch, lambda each, name=f"{tmp_path}/{turn}": each.path == name)


_KILLED = (
    f"import sys; sys.path[:0] = {sys.path!r}"
    """
import time
from insula.monitor.layout import Kind
from insula.monitor.probes import Probes
probes = Probes(ring_bytes=1 << 20)
probes.watch(int(sys.argv[1]), frozenset({Kind.FILE, Kind.NETWORK}))
probes.calls.wait_settled(deadline=time.monotonic() + float(sys.argv[2]))
print(len(probes.calls.attached), flush=True)
time.sleep(float(sys.argv[2]))
"""
)


def children(pid: int) -> list[str]:
    found = []
    for tasks in found_below(f"/proc/{pid}/task", "*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += Path(tasks).read_text().split()
    return found


def test_who_is_killed_goes_before_what_it_had_attached(bench: Bench) -> None:
    words = [sys.executable, "-c", _KILLED, str(bench.subjects["one"].cgroup), str(DEADLINE_S)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        attached = int(process.stdout.readline()) if process.stdout else 0
        assert (attached > 30) == can_hook()
        if can_hook():
            wait_until(lambda: bool(children(process.pid)), what="somebody keeps it")
        kept_by = children(process.pid)
        process.kill()
        process.wait()
        alive = [pid for pid in kept_by if Path("/proc", pid).exists()]
    assert len(alive) == can_hook()
    wait_until(lambda: not any(Path("/proc", pid).exists() for pid in alive), what="it is gone")


@both_ways
def test_what_is_watched_and_counted_is_told_once(bench: Bench, stack: ExitStack, tmp_path: Path) -> None:
    one = bench.subjects["one"]
    wish = TraceWish(kinds=(EventKind.FILE, EventKind.SECCOMP), paths=(f"{tmp_path}/*",))
    stack.enter_context(bench.collector.counting(one))
    watch = bench.watch(stack, "one", wish)
    bench.python("one", f"import os\nfor n in range(50): os.mkdir({str(tmp_path)!r} + f'/{{n}}')")
    lines = bench.until(watch, lambda each: each.path == f"{tmp_path}/49")
    assert [each.path for each in lines if isinstance(each, Event)] == [f"{tmp_path}/{n}" for n in range(50)]
    (counts,) = bench.collector.counts([one])
    assert {each.calls for each in counts.calls if each.call == "mkdir"} == {50}


@both_ways
def test_a_path_is_told_from_the_root_wherever_it_begins(bench: Bench, tmp_path: Path) -> None:
    wish = TraceWish(kinds=(EventKind.FILE,), paths=(f"{tmp_path}/*",))
    with ExitStack() as stack:
        seen = bench.watch(stack, "one", wish)
        bench.python("one", f"""
import os
os.mkdir({str(tmp_path / "in")!r})
os.chdir({str(tmp_path / "in")!r})
open("relative", "w").close()
folder = os.open("..", os.O_RDONLY)
os.rename("relative", "beside", src_dir_fd=os.open(".", os.O_RDONLY), dst_dir_fd=folder)
os.unlink("beside", dir_fd=folder)
""")  # fmt: skip
        lines = bench.until(seen, lambda event: event.call == "unlinkat")
    told = [(each.call, each.path, each.other_path) for each in lines if isinstance(each, Event)]
    assert ("openat", f"{tmp_path}/in/relative", "") in told
    assert ("unlinkat", f"{tmp_path}/beside", "") in told
    assert ("renameat", f"{tmp_path}/in/relative", f"{tmp_path}/beside") in told


@both_ways
def test_a_path_that_is_too_long_is_told_as_cut(bench: Bench, stack: ExitStack, tmp_path: Path) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.FILE,), paths=(f"{tmp_path}/*",)))
    bench.python("one", f"""
import os
folder = {str(tmp_path)!r} + "/"
for length in (1022, 1023, 3000):
    padding = length - len(folder) - 1
    open(folder + "/" * (padding % 2) + "./" * (padding // 2) + "a", "w").close()
os.rename("/." * 1000 + folder + "a", folder + "b")
os.mkdir(folder + "end")
""")  # fmt: skip
    lines = bench.until(watch, lambda each: each.path.endswith("/end"))
    events = [each for each in lines if isinstance(each, Event)]
    assert [(len(each.path), each.is_cut) for each in events[:-1]] == [
        (1022, False), (1023, True), (1023, True), (1023, True),
    ]  # fmt: skip
    assert events[3].other_path == f"{tmp_path}/b"


@both_ways
def test_a_path_beside_which_its_folder_finds_no_room_begins_nowhere(
    bench: Bench, stack: ExitStack, tmp_path: Path
) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.FILE,)))
    bench.python("one", f"""
import os
os.chdir({str(tmp_path)!r})
open("a", "w").close()
os.rename("./" * 600 + "a", "./" * 600 + "b")
""")  # fmt: skip
    event = bench.seen(watch, lambda each: each.call.startswith("rename"))
    assert event.is_cut and event.path.startswith("…/")


@both_ways
def test_another_path_for_whose_own_folder_there_is_no_room_begins_nowhere(
    bench: Bench, stack: ExitStack, tmp_path: Path
) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.FILE,)))
    bench.python("one", f"""
import os
os.chdir({str(tmp_path)!r})
open("a", "w").close()
os.mkdir("in")
here, there = (os.open(each, os.O_RDONLY) for each in (".", "in"))
os.rename("./" * 500 + "a", "./" * 500 + "b", src_dir_fd=here, dst_dir_fd=there)
""")  # fmt: skip
    event = bench.seen(watch, lambda each: each.call.startswith("rename"))
    assert (event.is_cut, event.other_path) == (False, "…/b")


@both_ways
def test_addresses_of_messages_and_their_protocol_are_told(bench: Bench) -> None:
    with ExitStack() as stack:
        seen = bench.watch(stack, "one", TraceWish(kinds=(EventKind.NETWORK,), calls=("sendmsg", "bind")))
        bench.python("one", """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 0))
t, other = socket.socketpair()
t.sendmsg([b"to whom it is connected"])
s.sendmsg([b"x"], [], 0, ("127.0.0.9", 9))
""")  # fmt: skip
        lines = bench.until(seen, lambda event: event.call == "sendmsg")
    *_, sent = [each for each in lines if isinstance(each, Event)]
    assert [each.call for each in lines if isinstance(each, Event)] == ["bind", "sendmsg"]
    assert (sent.address, sent.detail) == ("127.0.0.9:9", "udp")
    assert sent.port > 0


@both_ways
def test_who_asks_for_changes_is_told_nothing_else(bench: Bench, tmp_path: Path) -> None:
    with ExitStack() as stack:
        wish = TraceWish(kinds=(EventKind.FILE,), paths=(f"{tmp_path}/*",))
        seen = stack.enter_context(
            bench.collector.subscribe(
                bench.subjects["one"], wish, notify=bench.ready.set, scope=Scope.CHANGES
            )
        )
        path = str(tmp_path / "file")
        bench.python(
            "one", f"open({path!r}, 'w').close(); open({path!r}).close(); __import__('os').unlink({path!r})"
        )
        lines = bench.until(seen, lambda event: event.call == "unlink")
    assert [each.call for each in lines if isinstance(each, Event)] == ["openat", "unlink"]

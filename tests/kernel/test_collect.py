# SPDX-License-Identifier: Apache-2.0
"""The collector: every kind of event provoked by a real program, and seen with the right fields and container."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from insula.kernel import syscalls
from insula.kernel.cgroup import Group, Hierarchies, Limits, delete_parent
from insula.model.monitor import CallCount, Event, EventKind, TraceLine, TraceWish
from insula.monitor.collect import Collector
from insula.monitor.probes import Counting, Probes
from insula.monitor.subscription import Scope, Subject, Subscription

WITHIN_S = float(os.environ.get("INSULA_TESTS_DEADLINE_S", "20"))
"""Longer where processors are emulated (tests/vm)."""


class Bench:
    """A collector, two containers' cgroups, and programs in them."""

    def __init__(self, collector: Collector, subjects: dict[str, Subject]) -> None:
        self.collector = collector
        self.subjects = subjects
        self.ready = threading.Event()

    def run(self, name: str, program: Sequence[str], *, code: int | None = 0) -> None:
        """Run a program in a container's cgroup to its end."""
        subject = self.subjects[name]
        done = subprocess.run(
            program,
            preexec_fn=lambda: subject.group.attach(os.getpid()),
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert code is None or done.returncode == code, done.stderr

    def python(self, name: str, text: str, *, code: int | None = 0) -> None:
        self.run(name, [sys.executable, "-SIc", text], code=code)

    def seen(self, subscription: Subscription, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event."""
        return next(
            each for each in self.until(subscription, wanted) if isinstance(each, Event) and wanted(each)
        )

    def until(self, subscription: Subscription, wanted: Callable[[Event], bool]) -> list[TraceLine]:
        """Collect lines until an event is among them."""
        lines: list[TraceLine] = []
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            self.ready.clear()
            new = subscription.read(at_most=1000)
            lines += new
            if any(isinstance(each, Event) and wanted(each) for each in new):
                return lines
            if not new:
                self.ready.wait(0.2)
        pytest.fail(f"no such event among {len(lines)}: {lines[-20:]}")

    def watch(self, stack: ExitStack, name: str, wish: TraceWish) -> Subscription:
        return stack.enter_context(self.collector.subscribe(self.subjects[name], wish, notify=self.ready.set))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def bench() -> Iterator[Bench]:
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    groups = {name: Group(hierarchies, parent, name) for name in ("one", "other")}
    for group in groups.values():
        group.create()
    collector = Collector(lambda: Probes(ring_bytes=1 << 20))
    subjects = {
        name: Subject(f"id-{name}", name, group, group.v2_id(), 0, 65536) for name, group in groups.items()
    }
    yield Bench(collector, subjects)
    collector.close()
    for group in groups.values():
        group.kill()
        group.delete(time.monotonic() + WITHIN_S)
    delete_parent(hierarchies, parent)


def test_a_start_is_seen_with_its_arguments(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC,)))
    bench.run("one", ["/bin/echo", "a b", "", "c"])
    event = bench.seen(watch, lambda each: each.command == "echo")
    assert event.path == "/bin/echo"
    assert event.arguments == ("/bin/echo", "a b", "", "c")
    assert (event.container, event.name, event.user) == ("id-one", "one", 0)
    assert abs(event.at - time.time()) < WITHIN_S


def test_what_ended_a_moment_ago_is_read_after_catching_up(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXIT,)))
    for turn in range(1, 21):
        bench.run("one", ["/bin/true"])
        bench.collector.catch_up()
        assert len(watch.read(at_most=10)) == 1, turn


def test_another_container_is_not_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish())
    bench.run("other", ["/bin/echo", "secret"])
    bench.run("one", ["/bin/echo", "mine"])
    lines = bench.until(watch, lambda each: each.kind is EventKind.EXIT and each.command == "echo")
    assert not [each for each in lines if isinstance(each, Event) and "secret" in each.arguments]


@pytest.mark.parametrize(("text", "code", "detail"), [
    ("raise SystemExit(3)", 3, "exit code 3"),
    ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
])  # fmt: skip
def test_an_end_is_seen(bench: Bench, stack: ExitStack, text: str, code: int, detail: str) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXIT,)))
    bench.python("one", text, code=code)
    assert bench.seen(watch, lambda each: each.kind is EventKind.EXIT).detail == detail


def test_a_fork_names_the_child(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.FORK, EventKind.EXIT)))
    bench.python("one", "import os; p = os.fork(); p and os.waitpid(p, 0)")
    forked = bench.seen(watch, lambda each: each.kind is EventKind.FORK)
    assert forked.detail == f"child {int(forked.detail.split()[1])}"


def test_pids_are_those_that_the_container_counts(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC, EventKind.EXIT)))
    bench.run("one", ["unshare", "--pid", "--fork", "--", "unshare", "--pid", "--fork", "--", "/bin/true"])
    event = bench.seen(watch, lambda each: each.kind is EventKind.EXEC and each.path == "/bin/true")
    assert (event.pid, event.thread) == (1, 1)


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


def test_unix_sockets_are_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.NETWORK,)))
    name = f"insula-test-{uuid.uuid4().hex}"
    bench.python("one", f"import socket; socket.socket(socket.AF_UNIX).bind('\\0{name}')")
    assert bench.seen(watch, lambda each: each.call == "bind").address == f"unix:@{name}"


def test_a_signal_names_sender_and_target(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SIGNAL,)))
    bench.python("one", "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", code=-signal.SIGUSR1)
    event = bench.seen(watch, lambda each: "SIGUSR1" in each.detail)
    assert event.detail == f"SIGUSR1 to {event.pid}"


def test_a_mount_is_seen_also_if_it_fails(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.MOUNT,), errors=("any",)))
    bench.run("one", ["mount", "-t", "tmpfs", "none", "/nonexistent-insula"], code=None)
    event = bench.seen(watch, lambda each: "nonexistent-insula" in each.path)
    assert event.error == "ENOENT"


def test_an_identity_change_and_its_capability_are_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.IDENTITY, EventKind.CAPABILITY)))
    bench.python("one", "import os; os.setgid(1); os.setuid(1)")
    lines = bench.until(watch, lambda each: each.call == "setuid")
    told = {each.call or each.detail for each in lines if isinstance(each, Event)}
    assert {"setgid", "setuid"} <= told
    if not bench.collector.missing:
        assert {"SETGID granted", "SETUID granted"} <= told


def test_what_only_attackers_need_is_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.KERNEL,)))
    bench.python("one", "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)")  # PTRACE_TRACEME
    assert bench.seen(watch, lambda each: each.call == "ptrace").result == 0


def test_what_a_filter_answers_is_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SECCOMP,)))
    # A filter by hand: mkdir and mkdirat answer EPERM, the rest is allowed.
    bench.python("one", """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("=HBBIHBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 1, 0, 83, 0x15, 0, 1, 258, 6, 0, 0, 0x50001, 6, 0, 0, 0x7fff0000)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(5, code))) == 0
try: os.mkdir("/tmp/insula-never")
except PermissionError: pass
else: raise SystemExit(5)
""")  # fmt: skip
    event = bench.seen(watch, lambda each: each.kind is EventKind.SECCOMP)
    assert (event.call, event.error, event.path) == ("mkdir", "EPERM", "/tmp/insula-never")


def test_memory_that_runs_out_is_seen(bench: Bench, stack: ExitStack) -> None:
    bench.subjects["one"].group.set_limits(Limits(memory_bytes=32 << 20, memory_swap_bytes=32 << 20))
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.OOM,)))
    bench.python("one", "x = bytearray(200 << 20)", code=-9)
    assert bench.seen(watch, lambda each: each.kind is EventKind.OOM).command.startswith("python")


def test_throttling_is_seen(bench: Bench, stack: ExitStack) -> None:
    bench.subjects["one"].group.set_limits(Limits(cpu_quota_us=5000, cpu_period_us=100_000))
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.THROTTLE,)))
    bench.python("one", "import time; e = time.monotonic() + 1\nwhile time.monotonic() < e: pass")
    assert "held back for" in bench.seen(watch, lambda each: each.kind is EventKind.THROTTLE).detail


def test_system_calls_are_counted_exactly(bench: Bench, stack: ExitStack) -> None:
    stack.enter_context(bench.collector.counting(bench.subjects["one"]))
    bench.python("one", """
import os
for _ in range(12345): os.getppid()
for _ in range(17):
    try: os.stat("/nonexistent-insula")
    except OSError: pass
""")  # fmt: skip
    (counts,) = bench.collector.counts(list(bench.subjects.values()))
    by_name = {each.call: each for each in counts.calls}
    assert by_name["getppid"].calls == 12345
    stat = by_name["newfstatat"] if "newfstatat" in by_name else by_name["stat"]
    assert stat.errors["ENOENT"] >= 17
    assert counts.lost_events == 0


def test_each_look_tells_what_was_counted_since_and_of_who_rests_the_same(
    bench: Bench, stack: ExitStack
) -> None:
    subjects = [bench.subjects["one"], bench.subjects["other"]]
    for each in subjects:
        stack.enter_context(bench.collector.counting(each))

    def look() -> list[tuple[CallCount, ...]]:
        return [each.calls for each in bench.collector.counts(subjects)]

    for name in ("one", "other"):
        bench.python(name, "import os; os.getppid()")
    first = look()
    again = look()
    assert all(old is new for old, new in zip(first, again, strict=True))
    bench.python("one", "import os\ntry: os.rmdir('/nonexistent-insula')\nexcept OSError: pass")
    one, other = look()
    assert other is first[1]
    assert {each.call: each.errors for each in one}["rmdir"] == {"ENOENT": 1}
    assert {each.call: each.calls for each in one}["getppid"] == 1
    stack.close()
    stack.enter_context(bench.collector.counting(subjects[0]))
    assert look() == []


def test_a_rate_is_right_though_only_a_part_is_looked_at(bench: Bench, stack: ExitStack) -> None:
    stack.enter_context(bench.collector.counting(bench.subjects["one"], how=Counting.BY_LOOKS))
    begun = time.monotonic()
    bench.python("one", """
import os, time
next = time.monotonic()
while os.getppid() and next < NEXT:
    next += 0.001
    time.sleep(max(0, next - time.monotonic()))
""".replace("NEXT", str(begun + 6)))  # fmt: skip
    (counts,) = bench.collector.counts([bench.subjects["one"]])
    (made,) = (each.calls for each in counts.calls if each.call == "getppid")
    assert 0.3 < counts.looked_s < time.monotonic() - begun
    assert made / counts.looked_s == pytest.approx(1000, rel=0.5)
    stack.close()
    assert not bench.collector.attached


def test_who_wants_each_call_has_it_beside_one_who_looks(bench: Bench, stack: ExitStack) -> None:
    one = bench.subjects["one"]
    stack.enter_context(bench.collector.counting(one, how=Counting.BY_LOOKS))
    stack.enter_context(bench.collector.counting(one, how=Counting.EACH))
    bench.python("one", "import os\nfor _ in range(12345): os.getppid()")
    (counts,) = bench.collector.counts([one])
    assert {each.calls for each in counts.calls if each.call == "getppid"} == {12345}


def test_calls_are_timed_in_a_part_of_the_time(bench: Bench, stack: ExitStack) -> None:
    stack.enter_context(bench.collector.counting(bench.subjects["one"]))
    deadline = time.monotonic() + WITHIN_S
    slept = None
    while (slept is None or not slept.timed) and time.monotonic() < deadline:
        bench.python("one", "import time\nfor _ in range(30): time.sleep(0.01)")
        (counts,) = bench.collector.counts([bench.subjects["one"]])
        slept = next(each for each in counts.calls if each.call == "clock_nanosleep")
    assert slept is not None
    assert slept.mean_ns >= 10_000_000
    assert slept.p99_ns > 10_000_000


def test_with_the_last_watcher_nothing_stays_attached(bench: Bench) -> None:
    with ExitStack() as stack:
        bench.watch(stack, "one", TraceWish())
        with bench.collector.counting(bench.subjects["other"]):
            assert "on_enter" in bench.collector.attached
    assert not bench.collector.attached


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


def test_a_call_that_is_not_known_is_told_once_and_counted(bench: Bench) -> None:
    subject = bench.subjects["one"]
    usual = frozenset(syscalls.numbers(os.uname().machine)) - {"getsid"}
    with ExitStack() as stack:
        stack.enter_context(bench.collector.knowing(subject, usual))
        seen = bench.watch(stack, "one", TraceWish(kinds=(EventKind.DRIFT, EventKind.EXIT)))
        bench.python("one", "import os; [os.getsid(0) for _ in range(5)]")
        lines = bench.until(seen, lambda event: event.kind is EventKind.EXIT)
        assert bench.collector.strange(subject) == {"getsid": 5}
    drifts = [each for each in lines if isinstance(each, Event) and each.kind is EventKind.DRIFT]
    assert [each.call for each in drifts] == ["getsid"]
    assert bench.collector.strange(subject) == {}

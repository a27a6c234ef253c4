# SPDX-License-Identifier: Apache-2.0
"""The collector: every kind of event provoked by a real program, and seen with the right fields and container."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from insula.kernel import syscalls
from insula.kernel.bpf_object import Object
from insula.kernel.cgroup import Limits
from insula.model.monitor import CallCount, Event, EventKind, TraceWish
from insula.monitor.probes import Counting, Probes
from waiting import DEADLINE_S, wait_until
from watched import Bench, refuse_hooks


def test_a_start_is_seen_with_its_arguments(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC,)))
    bench.run("one", ["/bin/echo", "a b", "", "c"])
    event = bench.seen(watch, lambda each: each.command == "echo")
    assert event.path == "/bin/echo"
    assert event.arguments == ("/bin/echo", "a b", "", "c")
    assert (event.container, event.name, event.user) == ("id-one", "one", 0)
    assert abs(event.at - time.time()) < DEADLINE_S


def test_a_program_is_told_by_its_whole_path(bench: Bench, stack: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n:")
    (tmp_path / "tool").chmod(0o755)
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC,)))
    script = f"cd {tmp_path}; ./tool; cd /; {str(tmp_path)[1:]}/tool; exec {tmp_path}/tool"
    bench.run("one", ["sh", "-c", script])
    bench.collector.catch_up()
    found = [each for each in watch.read(at_most=100) if isinstance(each, Event) and each.other_path]
    assert [(each.path, each.other_path) for each in found] == [(f"{tmp_path}/tool", "/bin/sh")] * 3


def test_long_arguments_hide_no_program(bench: Bench, stack: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n:")
    (tmp_path / "tool").chmod(0o755)
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC,)))
    bench.run("one", ["sh", "-c", f"cd {tmp_path}; ./tool {'x' * 2000}"])
    event = bench.seen(watch, lambda each: len(each.arguments) > 1 and each.arguments[1].startswith("./tool"))
    assert (event.path, event.other_path, event.is_cut) == (f"{tmp_path}/tool", "/bin/sh", False)


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


def test_a_signal_names_sender_and_target(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SIGNAL,)))
    bench.python("one", "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", code=-signal.SIGUSR1)
    event = bench.seen(watch, lambda each: "SIGUSR1" in each.detail)
    assert event.detail == f"SIGUSR1 to {event.pid}"


@pytest.mark.parametrize("where", ["its group", "below its group"])
def test_what_the_kernel_signals_within_a_container_is_seen(
    bench: Bench, stack: ExitStack, where: str
) -> None:
    below = Path(bench.subjects["one"].group.v2_directory(), "below")
    below.mkdir()
    stack.callback(below.rmdir)
    group = below if where == "below its group" else below.parent
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SIGNAL,)))
    bench.python("one", f"open('{group}/cgroup.procs', 'w').write('0')" + """
import os, signal
if not (child := os.fork()): os._exit(0)
os.waitpid(child, 0)
came = []
signal.signal(signal.SIGALRM, lambda *_: came.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(came) < 100: pass
signal.setitimer(signal.ITIMER_REAL, 0)
""")  # fmt: skip
    lines = bench.until(watch, lambda each: "SIGALRM" in each.detail)
    assert any("SIGCHLD" in each.detail for each in lines if isinstance(each, Event))


def test_a_signal_to_a_neighbour_is_seen(bench: Bench, stack: ExitStack) -> None:
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SIGNAL,)))
    with running(bench, "other", "import signal; print(flush=True); signal.pause()") as target:
        bench.python("one", f"import os, signal; os.kill({target}, signal.SIGUSR1)")
    assert bench.seen(watch, lambda each: "SIGUSR1" in each.detail).detail == f"SIGUSR1 to {target}"


def test_a_neighbours_timer_is_not_seen(bench: Bench, stack: ExitStack) -> None:
    """It expires in an interrupt, beside whoever runs on that processor then."""
    pin = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.SIGNAL,)))
    with running(bench, "one", pin + "print(flush=True)\nwhile True: pass"):
        bench.python("other", pin + """
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(300): signal.pause()
signal.setitimer(signal.ITIMER_REAL, 0)
""")  # fmt: skip
    bench.collector.catch_up()
    assert [each for each in watch.read(at_most=10) if isinstance(each, Event)] == []


@contextmanager
def running(bench: Bench, name: str, text: str) -> Iterator[int]:
    """A Python program in a container's cgroup, once it has printed a line; its pid.  Killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-SIc", text],
        preexec_fn=lambda: bench.subjects[name].group.attach(os.getpid()),
        stdout=subprocess.PIPE,
    ) as program:
        try:
            assert program.stdout and program.stdout.readline()
            yield program.pid
        finally:
            program.kill()


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
    assert look() == [()]  # who is counted makes no call: that is told, too


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
    deadline = time.monotonic() + DEADLINE_S
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
            assert {"on_exec", "on_exit"} <= bench.collector.attached
    wait_until(lambda: not bench.collector.attached, what="all is detached")


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


def test_a_call_that_ends_between_two_looks_lengthens_no_other(bench: Bench) -> None:
    probes = Probes(ring_bytes=1 << 20, load_calls=refuse_hooks)
    cgroup = bench.subjects["one"].cgroup
    with bench.answering("one") as answer:
        try:
            answer()  # it has started
            probes.watch(cgroup, frozenset(), counting=Counting.BY_LOOKS)
            for is_on, is_timing in ((True, True), (False, False), (True, False)):
                probes.look(is_on=is_on, is_timing=is_timing)
                answer()
            timed = {number: found.calls for _, number, found in probes.durations({cgroup})}
            assert timed == {call_number("write"): 1}
            probes.look(is_on=True, is_timing=True)
            answer()
            probes.look(is_on=True, is_timing=False)
            answer()
            timed = {number: found.calls for _, number, found in probes.durations({cgroup})}
            assert timed == {call_number("write"): 2, call_number("read"): 1}  # looked at to its end
        finally:
            probes.close()


def test_no_calls_entry_is_traced_whose_end_is_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time would be taken for that of the next call whose end is seen, and whose entry was not."""
    probes = Probes(ring_bytes=1 << 20, load_calls=refuse_hooks)
    seen: list[frozenset[str]] = []
    attach = Object.attach

    def attach_and_look(self: Object, program: str) -> None:
        attach(self, program)
        seen.append(probes.attached)

    monkeypatch.setattr(Object, "attach", attach_and_look)
    try:
        probes.watch(bench.subjects["one"].cgroup, frozenset(), counting=Counting.BY_LOOKS)
        probes.look(is_on=True, is_timing=True)
        assert probes.attached >= {"on_enter", "on_exit"}
        assert [each for each in seen if "on_enter" in each and "on_exit" not in each] == []
    finally:
        probes.close()


def call_number(name: str) -> int:
    return syscalls.numbers(os.uname().machine)[name]

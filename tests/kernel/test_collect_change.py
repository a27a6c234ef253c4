# SPDX-License-Identifier: Apache-2.0
"""What a watcher wishes may change while it watches: of what it wishes before and after, nothing is missed."""

import os
import subprocess
import sys
from contextlib import ExitStack

from insula.model.monitor import Event, EventKind, Lost, TraceWish
from waiting import DEADLINE_S
from watched import Bench

CALLS = 3000
"""Fewer events than a ring of 1 MB holds."""
CHANGES = 10
_PROGRAM = f"""
import os, sys, time
sys.stdin.readline()
for number in range({CALLS}):
    try: os.rmdir(f"/nonexistent-insula/{{number}}")
    except OSError: pass
    if number % ({CALLS} // {CHANGES}) == 0:
        print(flush=True)
        sys.stdin.readline()
    time.sleep(0.0001)
"""
WISHES = [
    TraceWish(kinds=(EventKind.FILE, EventKind.EXEC)),
    TraceWish(kinds=(EventKind.FILE, EventKind.NETWORK, EventKind.SECCOMP)),
    TraceWish(kinds=(EventKind.FILE,)),
    TraceWish(),
    TraceWish(kinds=(EventKind.FILE, EventKind.CAPABILITY, EventKind.DRIFT)),
]


def test_what_is_wished_before_and_after_is_told_without_a_gap(bench: Bench, stack: ExitStack) -> None:
    subject = bench.subjects["one"]
    wish = TraceWish(kinds=(EventKind.FILE,))
    watch = bench.watch(stack, "one", wish)
    with subprocess.Popen(
        [sys.executable, "-SIc", _PROGRAM],
        preexec_fn=lambda: subject.group.attach(os.getpid()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        print(file=child.stdin, flush=True)
        for number in range(CHANGES):
            child.stdout.readline()
            print(file=child.stdin, flush=True)  # it goes on while what is wished changes
            changed = subject._replace(name=f"one-{number}")
            bench.collector.change(watch, changed, wish=WISHES[number % len(WISHES)])
        assert child.wait(DEADLINE_S) == 0
    bench.collector.catch_up()
    told = [
        int(line.path.rpartition("/")[2])
        for line in iter(lambda: next(iter(watch.read(at_most=1)), None), None)
        if isinstance(line, Event) and line.call == "rmdir"
    ]
    assert told == list(range(CALLS))


def test_what_is_no_longer_wished_is_no_longer_watched(bench: Bench, stack: ExitStack) -> None:
    subject = bench.subjects["one"]
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXEC, EventKind.FORK)))
    assert {"on_exec", "on_fork"} <= bench.collector.attached
    bench.collector.change(watch, subject._replace(name="new"), wish=TraceWish(kinds=(EventKind.EXEC,)))
    assert "on_fork" not in bench.collector.attached
    bench.run("one", ["true"])
    assert bench.seen(watch, lambda event: event.kind is EventKind.EXEC).name == "new"
    stack.close()
    assert not bench.collector.attached
    assert not [line for line in watch.read(at_most=10) if isinstance(line, Lost)]

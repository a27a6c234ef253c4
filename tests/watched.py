# SPDX-License-Identifier: Apache-2.0
"""A collector and two containers' cgroups, for tests of what is told of them."""

import errno
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from insula.kernel.cgroup import Group, Hierarchies, delete_parent
from insula.model.monitor import Event, TraceLine, TraceWish
from insula.monitor.call_hooks import CallPrograms, MapFd
from insula.monitor.collect import Collector
from insula.monitor.probes import Probes
from insula.monitor.subscription import Subject, Subscription
from waiting import DEADLINE_S, wait_until


class Bench:
    """A collector, two containers' cgroups, and programs in them."""

    def __init__(self, collector: Collector, subjects: dict[str, Subject]) -> None:
        self.collector = collector
        self.subjects = subjects
        self.ready = threading.Event()

    def run(self, name: str, program: Sequence[str], *, code: int | None = 0) -> str:
        """Run a program in a container's cgroup to its end.  Returns: what it wrote."""
        subject = self.subjects[name]
        done = subprocess.run(
            program,
            preexec_fn=lambda: subject.group.attach(os.getpid()),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert code is None or done.returncode == code, done.stderr
        return done.stdout.decode()

    def python(self, name: str, text: str, *, code: int | None = 0) -> str:
        return self.run(name, [sys.executable, "-SIc", text], code=code)

    @contextmanager
    def answering(self, name: str) -> Iterator[Callable[[], None]]:
        """Run a program that answers each byte in a container's cgroup: by one read(2), in which it waits, and one write(2).

        Yields: asks it, and waits until it reads again.
        """
        words = [sys.executable, "-SIc", "import os\nwhile line := os.read(0, 1): os.write(1, line)"]
        subject = self.subjects[name]
        with subprocess.Popen(
            words,
            preexec_fn=lambda: subject.group.attach(os.getpid()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as process:

            def ask() -> None:
                assert process.stdin and process.stdout
                process.stdin.write(b".")
                assert process.stdout.read(1) == b"."
                wait_until(lambda: is_reading(process.pid), what="it reads")

            try:
                yield ask
            finally:
                process.kill()

    def seen(self, subscription: Subscription, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event."""
        return next(
            each for each in self.until(subscription, wanted) if isinstance(each, Event) and wanted(each)
        )

    def until(self, subscription: Subscription, wanted: Callable[[Event], bool]) -> list[TraceLine]:
        """Collect lines until an event is among them."""
        lines: list[TraceLine] = []
        deadline = time.monotonic() + DEADLINE_S
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
        seen = stack.enter_context(self.collector.subscribe(self.subjects[name], wish, notify=self.ready.set))
        self.collector.wait_settled(deadline=time.monotonic() + DEADLINE_S)
        return seen


def is_reading(pid: int) -> bool:
    """Answer whether a process waits in read(2) of its standard input."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("0 0x0 ")


def refuse_hooks(map_fd: MapFd) -> CallPrograms:
    """As kernels do that have no trampolines, or where somebody forbids them."""
    raise OSError(errno.EPERM, "refused by the test")


both_ways = pytest.mark.parametrize(
    "bench",
    [pytest.param(CallPrograms, id="as-the-kernel-can"), pytest.param(refuse_hooks, id="at-the-end")],
    indirect=True,
)
"""Events of system calls are told at their functions, or when they end: nobody sees a difference."""


@contextmanager
def made_bench(load_calls: Callable[[MapFd], CallPrograms]) -> Iterator[Bench]:
    """Make a bench whose programs are loaded so."""
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    groups = {name: Group(hierarchies, parent, name) for name in ("one", "other")}
    for group in groups.values():
        group.create()
    collector = Collector(lambda: Probes(ring_bytes=1 << 20, load_calls=load_calls))
    subjects = {
        name: Subject(f"id-{name}", name, group, group.v2_id(), 0, 65536) for name, group in groups.items()
    }
    try:
        yield Bench(collector, subjects)
    finally:
        collector.close()
        for group in groups.values():
            group.kill()
            group.delete(time.monotonic() + DEADLINE_S)
        delete_parent(hierarchies, parent)

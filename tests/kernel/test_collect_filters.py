# SPDX-License-Identifier: Apache-2.0
"""Of what one process does, and of what threads of some names do."""

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from insula.model.monitor import Event, EventKind, TraceWish
from insula.monitor.subscription import Subscription
from watched import Bench


def told(bench: Bench, watch: Subscription) -> list[Event]:
    bench.collector.catch_up()
    return [line for line in watch.read(at_most=1000) if isinstance(line, Event)]


def test_one_process_is_told(bench: Bench, stack: ExitStack) -> None:
    with subprocess.Popen(
        ["sh", "-c", "read _; sh -c :; exec true"],
        preexec_fn=lambda: bench.subjects["one"].group.attach(os.getpid()),
        stdin=subprocess.PIPE,
    ) as child:
        wish = TraceWish(kinds=(EventKind.EXEC, EventKind.EXIT), pids=(child.pid,))
        watch = bench.watch(stack, "one", wish)
        child.communicate(b"\n")
    assert [(event.kind, event.pid) for event in told(bench, watch)] == [
        (EventKind.EXEC, child.pid),
        (EventKind.EXIT, child.pid),
    ]


def test_threads_are_told_by_patterns_of_their_names(bench: Bench, stack: ExitStack, tmp_path: Path) -> None:
    for name in ("insula-a,b", "other"):
        shutil.copy(shutil.which("true") or "/bin/true", tmp_path / name)
    watch = bench.watch(stack, "one", TraceWish(kinds=(EventKind.EXIT,), commands=("insula-*,b", "none")))
    for name in ("insula-a,b", "other"):
        bench.run("one", [str(tmp_path / name)])
    assert [event.command for event in told(bench, watch)] == ["insula-a,b"]

# SPDX-License-Identifier: Apache-2.0
"""`insula top` by textual's pilot: keys and what is drawn, against recorded answers of a daemon."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import Double, Exchange, serve

from insula.cli.top.app import Top
from insula.client.http import Client
from waiting import DEADLINE_S

NAMES = ("web", "database", "batch")
SOURCE = Path(__file__).parents[3] / "src"
IDS = {name: f"{number:x}" * 64 for number, name in enumerate(NAMES, start=10)}
SPAN = {
    "at": 6000.0, "seconds": 60.0, "cpu_us": 30_000_000, "cpu_peak_percent": 87.5, "memory_bytes": 1 << 30,
    "memory_peak_bytes": 3 << 30,
}  # fmt: skip
EVENT = {
    "type": "event", "at": 1_700_000_000.25, "container": IDS["web"], "name": "web", "kind": "exec", "pid": 7,
    "command": "sh", "arguments": ["/bin/sh", "-c", "echo [b]hi[/b]\x1b[2J"],
}  # fmt: skip


@dataclass
class Recorded:
    """A daemon that tells the same rates for ever."""

    double: Double
    over: threading.Event = field(default_factory=threading.Event)
    is_broken: bool = False

    def stats(self, at: float) -> list[dict[str, Any]]:
        return [
            {
                "id": IDS[name], "name": name, "sampled_at": at, "cpu_usage_us": int(at * 1e5 * share),
                "memory_bytes": 1 << (20 + share), "memory_limit_bytes": 1 << 30, "pids": share,
                "cpu_wait_us": int(at * 3e5), "memory_wait_us": 0, "io_wait_us": None,
                "read_bytes": int(at * 2048), "written_bytes": 0, "received_bytes": 0, "sent_bytes": int(at * 1e6),
            }
            for share, name in enumerate(NAMES, start=1)
        ]  # fmt: skip

    def counts(self, at: float, only: str) -> list[dict[str, Any]]:
        wanted = only.split(",") if only else list(IDS.values())
        calls = [
            {"call": "openat", "calls": int(at * 900), "failures": int(at * 300), "errors": {"ENOENT": int(at * 300)},
             "mean_ns": 1500, "p99_ns": 4096},
            {"call": "read", "calls": int(at * 100), "failures": 0, "errors": {}, "mean_ns": 0, "p99_ns": 0},
        ]  # fmt: skip
        return [{"id": each, "sampled_at": at, "looked_s": at, "calls": calls} for each in wanted]

    def stream(self, make: Callable[[float, str], Any]) -> Callable[[Exchange], None]:
        """Answer with a line every 50 ms; of another clock, on which a second has passed."""

        def answer(exchange: Exchange) -> None:
            if self.is_broken:
                exchange.writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
                return
            exchange.writer.write(b"HTTP/1.1 200 X\r\n\r\n")
            only = exchange.target.partition("only=")[2].replace("%2C", ",")
            now = 1000.0
            while not self.over.wait(0.05) and not self.is_broken:
                now += 1.0
                try:
                    exchange.writer.write(json.dumps(make(now, only)).encode() + b"\n")
                    exchange.writer.flush()
                except OSError:
                    return

        return answer

    def trace(self, exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 X\r\n\r\n")
        for line in ({"type": "began"}, EVENT, {"type": "lost", "events": 3}):
            exchange.writer.write(json.dumps(line).encode() + b"\n")
        exchange.writer.flush()
        self.over.wait()

    def prepare(self) -> None:
        answers = self.double.answers
        answers["GET /v1/stats"] = self.stream(lambda now, _: self.stats(now))
        answers["GET /v1/calls"] = self.stream(self.counts)
        where = f"/v1/containers/{IDS['web']}"
        record = {"name": "web", "id": IDS["web"], "spec": {"image": "nginx"}, "status": "running"}
        answers[f"GET {where}"] = (200, {}, record)
        answers[f"GET {where}/history"] = (200, {}, [SPAN])
        answers[f"GET {where}/trace"] = self.trace

    @property
    def counted(self) -> list[str]:
        """What was asked to be counted, in order."""
        return [each.target for each in self.double.seen if each.target.startswith("/v1/calls")]


@contextmanager
def recorded(folder: Path) -> Iterator[Recorded]:
    with serve(folder / "s") as double:
        made = Recorded(double)
        made.prepare()
        try:
            yield made
        finally:
            made.over.set()


def text_of(app: Top) -> str:
    """Return what stands on the screen."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


async def shown(pilot: Pilot[None], app: Top, *words: str) -> str:
    """Wait until all the words stand on the screen."""
    end = time.monotonic() + DEADLINE_S
    while missing := [word for word in words if word not in text_of(app)]:
        assert time.monotonic() < end, f"not shown: {missing}\n{text_of(app)}"
        await pilot.pause(0.02)
    return text_of(app)


def piloted(
    folder: Path, act: Callable[[Pilot[None], Top, Recorded], Awaitable[None]], *, width: int = 80
) -> None:
    async def run(made: Recorded) -> None:
        app = Top(Client(made.double.host), host="alpha")
        async with app.run_test(size=(width, 24)) as pilot:
            await act(pilot, app, made)
            assert max(map(len, text_of(app).splitlines())) <= width

    with recorded(folder) as made:
        asyncio.run(run(made))


def order(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in NAMES]


def test_all_that_run_are_shown_with_their_figures(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, _: Recorded) -> None:
        text = await shown(pilot, app, "alpha: 3 containers", "openat 90% read 10%", "openat ENOENT 300/s")
        assert order(text) == ["batch", "database", "web"]
        (line,) = [line for line in text.splitlines() if line.startswith("batch")]
        assert line.split() == "batch 30.0 8.0M 30/0/- 2.0K/0 0/977K 1.0K 300".split()
        assert text.splitlines()[-1].startswith("⏎ look into")

    piloted(tmp_path, act)


def test_a_letter_sorts_and_r_reverses(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, _: Recorded) -> None:
        await shown(pilot, app, "3 containers", "CPU%▼")
        await pilot.press("a")
        assert order(await shown(pilot, app, "NAME▲")) == ["batch", "database", "web"]
        await pilot.press("r")
        assert order(await shown(pilot, app, "NAME▼")) == ["web", "database", "batch"]

    piloted(tmp_path, act)


def test_only_what_is_shown_is_counted(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, made: Recorded) -> None:
        await shown(pilot, app, "openat 90%")
        await pilot.press(*"/data", "enter")
        assert order(await shown(pilot, app, "1 container,", "only `data`", "openat 90%")) == ["database"]
        await pilot.press("escape")
        await shown(pilot, app, "3 containers")
        await pilot.press("/", *"web", "enter", "enter")
        await shown(pilot, app, "EVENTS", "ENOENT 300")
        assert made.counted == [
            "/v1/calls?stream=1",
            *(f"/v1/calls?stream=1&only={IDS['database']}", "/v1/calls?stream=1"),
            f"/v1/calls?stream=1&only={IDS['web']}",
        ]

    piloted(tmp_path, act)


def test_one_is_looked_into(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, _: Recorded) -> None:
        await shown(pilot, app, "openat 90%")
        await pilot.press("a", "end", "enter")
        text = await shown(
            pilot, app, "nginx  running", "peak      87.5 %", "peak      3.0G", "3 events were lost", "1.5µs"
        )
        assert "limit     1.0G" in text and "an hour ago" in text
        assert "exec /bin/sh -c echo [b]hi[/b]?[2J" in text  # no command reaches the terminal
        assert text.splitlines()[-1] == "esc back  q quit"
        await pilot.press("escape")
        await shown(pilot, app, "3 containers")

    piloted(tmp_path, act)


def test_a_wide_terminal_shows_the_calls_of_all(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, _: Recorded) -> None:
        text = await shown(pilot, app, "TOP CALLS", "openat 90%")
        assert text.count("openat 90% read 10%") == 4

    piloted(tmp_path, act, width=120)


def test_it_says_what_is_wrong_and_goes_on(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, made: Recorded) -> None:
        await shown(pilot, app, "3 containers")
        made.is_broken = True
        await shown(pilot, app, "the stream has ended")
        made.is_broken = False
        await shown(pilot, app, "3 containers", "openat 90%")

    piloted(tmp_path, act)


def test_q_ends_it_and_hangs_up(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Top, _: Recorded) -> None:
        await shown(pilot, app, "3 containers")
        await pilot.press("q")
        assert not app.is_running or app.return_code == 0

    piloted(tmp_path, act)


@pytest.mark.parametrize(
    "module", ["insula.cli.main", "insula.cli.commands.top", "insula.cli.commands.stats"]
)
def test_no_command_waits_for_what_only_the_screen_needs(module: str) -> None:
    script = f"import sys, {module}; print('textual' in sys.modules or 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCE)},
    )
    assert done.stdout == "False\n"

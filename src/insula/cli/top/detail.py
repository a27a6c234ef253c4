# SPDX-License-Identifier: Apache-2.0
"""One container looked into: an hour of its processor and memory, its system calls with errors and durations, its events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from insula.cli.commands.trace import text_of
from insula.cli.render import printable, short
from insula.cli.top.feed import Feed
from insula.cli.top.figures import (
    Figures,
    Json,
    compact,
    count,
    duration,
    graph,
    percent,
    placed,
    wait,
)
from insula.client.http import Client, quote
from insula.model.errors import InsulaError

if TYPE_CHECKING:
    from insula.cli.top.app import Top

HISTORY_S = 3600
STEP_S = 60
EVENTS_S = 0.5
"""How often events are drawn."""
AGAIN_S = 15.0
"""How often the hour is asked for."""
GRAPH_HEIGHT = 3
LABEL_WIDTH = 18
MAX_EVENTS = 200
MS_END, US_END = len("12:00:00.000"), len("12:00:00.000000")
#: Not those of files and forks: there are too many to read.
EVENT_KINDS = "exec,exit,signal,oom,capability,seccomp,network,mount,identity,kernel,throttle,drift"
HELP = "esc back  q quit"
HEADS = {
    "calls": f"{'CALL':<18}{'/s':>7}{'%':>6}{'MEAN':>8}{'P99':>8}{'ERR/s':>7}  ERRORS",
    "events": "EVENTS",
}


class Detail(Screen[None]):
    """One container."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,left,backspace", "app.pop_screen", show=False)]
    CSS = """
    #title { text-style: bold; }
    #cpu { height: 3; color: ansi_green; }
    #memory { height: 3; margin: 1 0 0 0; color: ansi_cyan; }
    #axis, #now { height: 1; }
    #now { margin: 0 0 1 0; }
    #calls, #events { height: 1fr; }
    """

    def __init__(self, container: str) -> None:
        super().__init__()
        self._container = container
        self._heading = ""
        self._spans: list[Json] = []
        self._events: deque[Json] = deque(maxlen=MAX_EVENTS)
        """Lines of the trace, as they came; the feed's thread appends."""
        self._note = ""
        """Why there are no events."""
        self._trace: Feed | None = None

        names = ("title", "cpu", "memory", "axis", "now", "calls", "events")
        self._places = {name: Static(id=name, markup=False) for name in names}

    def compose(self) -> ComposeResult:
        for name, place in self._places.items():
            if name in HEADS:
                yield Static(HEADS[name], classes="head", markup=False)
            yield place
        yield Static(HELP, classes="help", markup=False)

    @property
    def _top(self) -> Top:
        return cast("Top", self.app)

    def on_mount(self) -> None:
        self._top.count(frozenset({self._container}))
        self._trace = Feed(
            self._top.client,
            f"/v1/containers/{quote(self._container)}/trace",
            {"kinds": EVENT_KINDS},
            tell=lambda _feed, line: self._take_event(line),
            fail=lambda _feed, reason: self._take_note(reason),
        )
        self.set_interval(EVENTS_S, self._draw_events)
        self.set_interval(AGAIN_S, self._ask)
        self._ask()
        self.draw()

    def on_unmount(self) -> None:
        if self._trace is not None:
            self._trace.close()

    def on_resize(self) -> None:
        self.draw()

    def _hand_over(self, take: Callable[[Any], None], value: Any) -> None:
        """Bring what a thread heard to the screen's own."""
        if self.is_running:
            self.call_later(take, value)

    def _ask(self) -> None:
        self.run_worker(self._fetch, thread=True, exclusive=True)

    def _fetch(self) -> None:
        client: Client = self._top.client
        where = f"/v1/containers/{quote(self._container)}"
        try:
            spans = client.get(f"{where}/history", {"seconds": str(HISTORY_S), "step": str(STEP_S)})
            record = client.get(where)
        except (InsulaError, OSError):
            return  # the next time may be better; who shows the figures says what is wrong
        self._hand_over(self._take_history, (spans, record))

    def _take_history(self, told: tuple[list[Json], Json]) -> None:
        self._spans, record = told
        self._heading = (
            f"{record['name']}  {short(record['id'])}  {record['spec']['image']}  {record['status']}"
        )
        self.draw()

    def _take_event(self, line: Json) -> None:
        self._note = ""
        if line["type"] != "began":
            self._events.append(line)

    def _take_note(self, reason: str) -> None:
        self._note = reason

    def draw(self) -> None:
        """Show what is known now."""
        if not self.is_mounted:
            return
        found = self._top.board.find(self._container)
        width = self.size.width
        with self.app.batch_update():
            self._write("title", [self._title_of(found)])
            self._write("cpu", self._cpu(found, width))
            self._write("memory", self._memory(found, width))
            self._write("axis", [f"{'':<{LABEL_WIDTH}}{'an hour ago':<{self._columns(width) - 3}}now"])
            self._write("now", [_now(found)] if found is not None else [])
            self._draw_calls(found)
            self._draw_events()

    def _title_of(self, found: Figures | None) -> str:
        if found is None and self._top.problem:
            return self._top.problem
        words = self._heading or (found.name if found is not None else short(self._container))
        return words if found is not None else f"{words}  does not run"

    def _cpu(self, found: Figures | None, width: int) -> list[str]:
        values = self._values(lambda span: span["cpu_us"] / span["seconds"] / 1e4, width=width)
        now = found.cpu_percent if found is not None else None
        peak = max([now or 0.0, *(span["cpu_peak_percent"] for span in self._spans)])
        labels = (
            f"cpu     {percent(now):>6} %",
            f"peak    {percent(peak):>6} %",
            "",
        )
        return _beside(labels, values, ceiling=max([100.0, *(each or 0.0 for each in values)]))

    def _memory(self, found: Figures | None, width: int) -> list[str]:
        values = self._values(lambda span: float(span["memory_bytes"]), width=width)
        now = found.memory_bytes if found is not None else 0
        peak = max([now, *(span["memory_peak_bytes"] for span in self._spans)])
        limit = found.memory_limit_bytes if found is not None else None
        labels = (
            f"memory  {compact(now):>6}",
            f"peak    {compact(peak):>6}",
            f"limit   {compact(limit):>6}" if limit else "",
        )
        return _beside(labels, values, ceiling=max([1.0, *(each or 0.0 for each in values)]))

    def _values(self, read: Callable[[Json], float], *, width: int) -> list[float | None]:
        return placed(self._spans, count=self._columns(width), step_s=STEP_S, read=read)

    @staticmethod
    def _columns(width: int) -> int:
        return max(1, min(HISTORY_S // STEP_S, width - LABEL_WIDTH))

    def _draw_calls(self, found: Figures | None) -> None:
        lines: list[str] = []
        if self._top.no_counts:
            lines = [f"not counted: {self._top.no_counts}"]
        elif found is not None:
            lines = ["counting …"] if found.calls is None else _call_lines(found)
        self._write("calls", lines[: self._room("calls")])

    def _draw_events(self) -> None:
        if self.is_mounted:
            note = [f"not told: {self._note}"] if self._note else []
            room = self._room("events")
            lines = [_event_line(each) for each in list(self._events)[-room:]]
            self._write("events", [*lines, *note][-room:])

    def _room(self, name: str) -> int:
        return max(1, self._places[name].size.height)

    def _write(self, name: str, lines: list[str]) -> None:
        text = "\n".join(each[: self.size.width] for each in lines)
        self._places[name].update(Content(text))


def _beside(labels: tuple[str, ...], values: list[float | None], *, ceiling: float) -> list[str]:
    lines = graph(values, height=GRAPH_HEIGHT, ceiling=ceiling)
    return [f"{label:<{LABEL_WIDTH}}{line}" for label, line in zip(labels, lines, strict=True)]


def _now(of: Figures) -> str:
    rates = {key: compact(rate) for key, rate in of.bytes_per_s.items()}
    cpu, memory, io = (wait(each) for each in of.waits)
    return (
        f"waits: cpu {cpu} % memory {memory} % io {io} %   disk {rates['read_bytes']}/{rates['written_bytes']}"
        f"   net {rates['received_bytes']}/{rates['sent_bytes']}   tasks {of.pids}"
    )


def _event_line(line: Json) -> str:
    match line["type"]:
        case "lost":
            return f"{line['events']} events were lost"
        case "ended":
            return printable(line["reason"])
        case _:
            text = text_of(line)
            return text[:MS_END] + text[US_END:]


def _call_lines(of: Figures) -> list[str]:
    whole = of.call_rate or 0.0
    return [
        f"{each.call[:17]:<18}{count(each.rate):>7}{100 * each.rate / whole:>6.1f}{duration(each.mean_ns):>8}"
        f"{duration(each.p99_ns):>8}{count(each.failure_rate):>7}  "
        + ", ".join(f"{error} {count(rate)}" for error, rate in each.errors)
        for each in of.calls or ()
    ]

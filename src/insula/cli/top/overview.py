# SPDX-License-Identifier: Apache-2.0
"""The table of all that run: a line each, sorted and filtered by keys, and the calls of the one under the cursor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.coordinate import Coordinate
from textual.screen import Screen
from textual.widgets import DataTable, Input, Static

from insula.cli.render import clip
from insula.cli.top.figures import (
    COUNTED_SORTS,
    SORTS,
    Figures,
    arranged,
    compact,
    count,
    percent,
    wait,
)

if TYPE_CHECKING:
    from insula.cli.top.app import Top

MIN_NAME, USUAL_NAME, MAX_NAME = 12, 16, 24
MIN_CALLS, MUCH_CALLS = 16, 36
"""A column of calls that has less room is left out; names get more room when it has much."""
SLACK = 2
"""So many times more than are on the screen may be counted."""
MANY = 200
"""So many containers are not named one by one: all are counted."""
HELP = "⏎ look into   / filter   sort: the underlined letter   r reverse   q quit"


@dataclass(frozen=True, slots=True)
class Column:
    """A figure, right-justified."""

    sort: str
    """The key that sorts by it: a letter of the title."""
    title: str
    width: int
    read: Callable[[Figures], str]
    weigh: Callable[[Figures], float | None] = lambda _: None
    """What is warned of."""
    warns_at: tuple[float, float] = (0.0, 0.0)


def _waits(of: Figures) -> str:
    return "/".join(map(wait, of.waits))


def _pair(of: Figures, first: str, second: str) -> str:
    return "/".join(compact(of.bytes_per_s.get(each, 0.0)) for each in (first, second))


def _warned(cell: str, value: float | None, *, at: tuple[float, float]) -> str:
    """Colour a cell whose value is above the first, or the second, of the limits."""
    if value is None or value < at[0]:
        return cell
    return f"[yellow]{cell}[/]" if value < at[1] else f"[red]{cell}[/]"


COLUMNS: tuple[Column, ...] = (
    Column("c", "CPU%", 6, lambda of: percent(of.cpu_percent)),
    Column("m", "MEM", 5, lambda of: compact(of.memory_bytes)),
    Column("w", "WAIT C/M/IO", 12, _waits, lambda of: max(each or 0.0 for each in of.waits), (10.0, 50.0)),
    Column("d", "DISK R/W", 9, lambda of: _pair(of, "read_bytes", "written_bytes")),
    Column("n", "NET IN/OUT", 11, lambda of: _pair(of, "received_bytes", "sent_bytes")),
    Column("s", "CALLS/s", 8, lambda of: count(of.call_rate)),
    Column("e", "ERR/s", 6, lambda of: count(of.failure_rate)),
)
_FIXED = sum(each.width + 1 for each in COLUMNS)


def _widths(width: int) -> tuple[int, int]:
    """Return how wide names and calls are in a terminal of that width; 0: calls are left out."""
    room = width - 1 - _FIXED  # 1: the scroll bar
    name = min(MAX_NAME, max(USUAL_NAME, room - 1 - MUCH_CALLS))
    calls = room - 1 - name
    return (name, calls) if calls >= MIN_CALLS else (max(MIN_NAME, room), 0)


def top_calls(of: Figures, *, width: int) -> str:
    """Return the most frequent calls with their shares, as many as fit."""
    whole = of.call_rate or 0.0
    return _fitting([f"{each.call} {100 * each.rate / whole:.0f}%" for each in of.calls or ()], width=width)


def _fitting(words: list[str], *, width: int, gap: str = " ") -> str:
    line = ""
    for word in words:
        longer = f"{line}{gap}{word}" if line else word
        if len(longer) > width:
            break
        line = longer
    return line


class Table(DataTable[str]):
    """A list: home and end lead to its first and last line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]


class Overview(Screen[None]):
    """All that run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(each.key, f"sort('{each.key}')", show=False) for each in SORTS),
        Binding("r", "reverse", show=False),
        # Before the focused table has it: what is typed right after goes into the entry.
        Binding("slash", "filter", show=False, priority=True),
        Binding("escape", "forget_filter", show=False),
    ]
    CSS = """
    DataTable { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    Input { display: none; border: none; height: 1; padding: 0; }
    DataTable > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold; }
    DataTable > .datatable--cursor { background: ansi_blue; color: ansi_bright_white; text-style: none; }
    #selected { height: 2; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._sort = SORTS[0]
        self._is_reversed = False
        self._wanted = ""
        self._rows: list[Figures] = []
        self._cells: list[list[str]] = []
        self._kept: frozenset[str] = frozenset()
        """Whose calls are counted; empty: of all."""
        self._widths: tuple[int, int] = (0, 0)
        self._titles: list[tuple[str, int]] = []

        self._head = Static(classes="head", markup=False)
        self._table = Table(cursor_type="row", cell_padding=0, header_height=1)
        self._selected = Static(id="selected", markup=False)
        self._entry = Input(placeholder="name, or the beginning of an id")

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._table
        yield self._selected
        yield self._entry
        yield Static(HELP, classes="help", markup=False)

    @property
    def _top(self) -> Top:
        return cast("Top", self.app)

    def on_mount(self) -> None:
        self._table.focus()
        self.draw()

    def on_resize(self) -> None:
        self.draw()

    def on_screen_resume(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Show what is known now."""
        if not self.is_mounted:
            return
        self._rows = arranged(
            self._top.board.figures(), sort=self._sort, is_reversed=self._is_reversed, wanted=self._wanted
        )
        with self.app.batch_update():
            self._draw_head()
            self._draw_rows()
            self._draw_selected()
        if self.is_current:
            self._top.count(self._shown())

    def _draw_head(self) -> None:
        cpu = sum(each.cpu_percent or 0.0 for each in self._rows)
        memory = sum(each.memory_bytes for each in self._rows)
        word = "container" if len(self._rows) == 1 else "containers"
        left = f"{self._top.host}: {len(self._rows)} {word}, cpu {percent(cpu)} %, memory {compact(memory)}"
        if self._wanted:
            left += f", only `{self._wanted}`"
        clock = time.strftime("%H:%M:%S UTC", time.gmtime())
        text = self._top.problem or left
        room = max(0, self.size.width - len(clock) - 1)
        self._head.update(Content(f"{text[:room]:<{room}} {clock}"))

    def _draw_rows(self) -> None:
        table = self._table
        is_new = self._fit_columns()
        cells = [self._line(each) for each in self._rows]
        ids = [each.id for each in self._rows]
        if is_new or ids != [key.value for key in table.rows]:
            self._replace_rows(cells)
        else:
            for row, (now, before) in enumerate(zip(cells, self._cells, strict=True)):
                for column, text in enumerate(now):
                    if text != before[column]:
                        table.update_cell_at(Coordinate(row, column), text)
        self._cells = cells

    def _replace_rows(self, cells: list[list[str]]) -> None:
        table = self._table
        # Who looks at the first goes on looking at the first, whichever that is.
        selected = self._selected_id() if table.cursor_row else ""
        scrolled = table.scroll_y
        table.clear()
        for each, line in zip(self._rows, cells, strict=True):
            table.add_row(*line, key=each.id)
        at = next((row for row, each in enumerate(self._rows) if each.id == selected), 0)
        table.move_cursor(row=at, animate=False, scroll=False)
        table.scroll_to(y=scrolled, animate=False, force=True)

    def _fit_columns(self) -> bool:
        """Make the columns anew if the terminal, or the order, has another form than they."""
        name_width, calls_width = self._widths = _widths(self.size.width)
        titles = [(self._title("a", "NAME", width=-name_width), name_width)]
        titles += [
            (self._title(each.sort, each.title, width=each.width + 1), each.width + 1) for each in COLUMNS
        ]
        if calls_width:
            titles.append((" TOP CALLS", calls_width + 1))
        if titles == self._titles:
            return False
        self._titles = titles
        self._table.clear(columns=True)
        for title, width in titles:
            self._table.add_column(title, width=width)
        return True

    def _title(self, key: str, title: str, *, width: int) -> str:
        """Return a heading of that width (negative: left-justified), the key underlined, the order marked."""
        mark = ""
        if key == self._sort.key:
            mark = "▼" if self._sort.is_downward is not self._is_reversed else "▲"
        margin = " " * (abs(width) - len(title) - len(mark))
        before, letter, after = title.partition(key.upper() if key.upper() in title else key)
        words = f"{before}[u]{letter}[/u]{after}{mark}"
        return words + margin if width < 0 else margin + words

    def _line(self, of: Figures) -> list[str]:
        name_width, calls_width = self._widths
        cells = [f"{clip(of.name, name_width):<{name_width}}"]
        cells += [
            _warned(f"{each.read(of):>{each.width + 1}}", each.weigh(of), at=each.warns_at)
            for each in COLUMNS
        ]
        if calls_width:
            cells.append(f" {top_calls(of, width=calls_width)}")
        return cells

    def _selected_id(self) -> str:
        table = self._table
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return ""
        return table.coordinate_to_cell_key(Coordinate(table.cursor_row, 0)).row_key.value or ""

    def _draw_selected(self) -> None:
        selected = self._selected_id()
        found = next((each for each in self._rows if each.id == selected), None)
        if self._top.no_counts:
            text = f"system calls are not counted: {self._top.no_counts}"
        elif found is None:
            text = "none of this name runs" if self._wanted else "nothing runs here"
        else:
            room = self.size.width - len("errors  ")
            calls = top_calls(found, width=room) or ("-" if found.calls is None else "none")
            failed = [f"{what} {count(rate)}/s" for what, rate in found.errors]
            text = f"calls   {calls}\nerrors  {_fitting(failed, width=room, gap=', ') or '-'}"
        self._selected.update(Content(text))

    def _shown(self) -> frozenset[str]:
        """Return whose calls are to be counted: of those on the screen, or of all that are sorted by them; empty: of all.

        Who was on the screen a moment ago may stay among them: another order each second is not another wish each second.
        """
        running = self._top.board.figures()
        if self._sort.key in COUNTED_SORTS:
            shown = self._rows
        else:
            first = int(self._table.scroll_y)
            shown = self._rows[first : first + max(1, self._table.size.height)]
        wanted = frozenset(each.id for each in shown)
        if len(shown) == len(running) or len(shown) > MANY:
            self._kept = frozenset()
        elif not wanted <= self._kept or len(self._kept) > SLACK * len(wanted):
            both = wanted | self._kept
            self._kept = both if len(both) <= SLACK * len(wanted) else wanted
        return self._kept

    @on(DataTable.RowHighlighted)
    def _cursor_moved(self) -> None:
        self._draw_selected()

    @on(DataTable.RowSelected)
    def _look_into(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value:
            self._top.look_into(event.row_key.value)

    def action_sort(self, key: str) -> None:
        """Sort by another figure."""
        self._sort = next(each for each in SORTS if each.key == key)
        self._is_reversed = False
        self.draw()

    def action_reverse(self) -> None:
        """Show the last first."""
        self._is_reversed = not self._is_reversed
        self.draw()

    def action_filter(self) -> None:
        """Ask which ones are wanted."""
        self._entry.display = True
        self.set_focus(self._entry)

    def action_forget_filter(self) -> None:
        """Show all again."""
        self._entry.value = ""
        self._close_filter()

    @on(Input.Changed)
    def _filter_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value.strip()
        self.draw()

    @on(Input.Submitted)
    def _filter_done(self) -> None:
        self._close_filter()

    def _close_filter(self) -> None:
        self._entry.display = False
        self.set_focus(self._table)

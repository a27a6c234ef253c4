# SPDX-License-Identifier: Apache-2.0
"""Show lists: as a table that fits the terminal, as JSON, by a template, or ids alone.

A column is its title and how to read it from the daemon's JSON.  Into a pipe nothing is cut to the width (unless COLUMNS
is set).  Text of containers is made printable: it could hold terminal commands.
"""

from __future__ import annotations

import json
import os
import re
import sys
from time import time

from insula.cli.parser import UsageError
from insula.model.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence

    from insula.client.http import Json

GAP = "  "
MIN_WIDTH = 8
SHORT_ID = 12
_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{\{\s*(json\s+)?\.([\w.]*)\s*\}\}")


class Column:
    """What may happen in a narrow terminal: the column with the greatest shrink is cut with `…`, then the spare ones
    are left out, then the others with a shrink are cut.
    """

    def __init__(
        self, title: str, read: Callable[[Json], str], *, shrink: int = 0, spare: bool = False
    ) -> None:
        self.title = title
        self.read = read
        self.shrink = shrink
        self.spare = spare


def add_options(parser: ArgumentParser, *, quiet: str = "", truncates: bool = False) -> None:
    """Give a listing command its --format, and -q and --no-trunc where they mean something."""
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="table, json, or a template as {{.Name}}"
    )
    if quiet:
        parser.add_argument("-q", "--quiet", action="store_true", help=f"print only {quiet}")
    if truncates:
        parser.add_argument("--no-trunc", action="store_true", help="do not shorten ids and commands")


def check_form(form: str) -> None:
    """Take `text` and `json`.  Raises: UsageError."""
    if form not in ("text", "json"):
        raise UsageError(f"cannot show as `{form}`", hint="text or json")


def show(rows: Sequence[Json], columns: Sequence[Column], *, options: Namespace, key: str = "id") -> None:
    """Print rows as the options wish.    key: the column that -q prints."""
    wanted = str(options.format)
    if getattr(options, "quiet", False):
        lines = [column.read(row) for row in rows for column in columns if column.title.lower().endswith(key)]
    elif wanted == "json":
        lines = [json.dumps(list(rows), indent=2, ensure_ascii=False)]
    elif wanted == "table":
        lines = table(rows, columns, width=terminal_width())
    elif wanted.startswith("table "):
        template = wanted.removeprefix("table ")
        lines = _aligned(
            [_titles(template, columns), *(fill(template, row, columns=columns) for row in rows)]
        )
    elif "{{" in wanted:
        lines = [fill(wanted, row, columns=columns) for row in rows]
    else:
        raise UsageError(f"cannot use format `{wanted}`", hint="table, json, or a template as {{.Name}}")
    for line in lines:
        print(line.encode("utf-8", "replace").decode())


def terminal_width() -> int | None:
    """Return the columns to fit in; None: no limit."""
    wished = os.environ.get("COLUMNS", "")
    if wished.isascii() and wished.isdigit() and int(wished):
        return int(wished)
    try:
        return os.get_terminal_size(1).columns or None
    except OSError:
        return None


def table(rows: Sequence[Json], columns: Sequence[Column], *, width: int | None) -> list[str]:
    """Return the lines: headings, then a line for each row."""
    cells = [[printable(column.read(row)) for column in columns] for row in rows]
    widths = [max([len(c.title), *(len(line[i]) for line in cells)]) for i, c in enumerate(columns)]
    if width is not None:
        if any(c.spare for c in columns) and not _fits_by_first(widths, columns, width=width):
            return table(rows, [column for column in columns if not column.spare], width=width)
        _shrink(widths, columns, width=width)
    heading = _line([column.title for column in columns], widths)
    return [_bold(heading), *(_line(line, widths) for line in cells)]


def printable(text: str) -> str:
    """Replace control characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def lookup(row: Json, path: str) -> object:
    """Return the value at `spec.image`, None if there is none."""
    value: object = row
    for word in filter(None, path.split(".")):
        if not isinstance(value, dict):
            return None
        value = next(
            (v for k, v in value.items() if k.replace("_", "") == word.lower().replace("_", "")), None
        )
    return value


def fill(template: str, row: Json, *, columns: Sequence[Column]) -> str:
    """Fill `{{.Title}}` by a column and `{{.json.path}}` by the row's field.

    Raises: UsageError for an unknown field.
    """

    def field(match: re.Match[str]) -> str:
        if match[1] or not match[2]:
            return json.dumps(lookup(row, match[2]), ensure_ascii=False)
        column = _named(columns, match[2])
        if column is not None:
            return column.read(row)
        value = lookup(row, match[2])
        if value is None and match[2].split(".")[0].lower() not in {k.replace("_", "") for k in row} | set(
            row
        ):
            names = ", ".join(_field_name(column) for column in columns)
            raise UsageError(f"cannot fill `{match[0]}`: no such field", hint=names or ", ".join(row))
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _FIELD.sub(field, template.replace("\\t", "\t").replace("\\n", "\n"))


def ago(then: float, *, now: float | None = None) -> str:
    return f"{format_duration(max(0.0, (time() if now is None else now) - then))} ago"


def until(then: float, *, now: float | None = None) -> str:
    """Say when something ends: `in 29 days`, `ended`."""
    left = then - (time() if now is None else now)
    return f"in {format_duration(left)}" if left > 0 else "ended"


def short(identifier: str) -> str:
    """Return the 12 digits by which people know a thing."""
    return identifier.removeprefix("sha256:")[:SHORT_ID]


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _named(columns: Sequence[Column], name: str) -> Column | None:
    wanted = name.lower()
    for column in columns:
        title = "".join(_WORD.findall(column.title)).lower()
        if title in (wanted, wanted + "s") or (wanted == "id" and title.endswith("id")):
            return column
    return None


def _field_name(column: Column) -> str:
    """Return what people write for a column."""
    words = _WORD.findall(column.title)
    return "ID" if words[-1] == "ID" else "".join(word.capitalize() for word in words)


def _titles(template: str, columns: Sequence[Column]) -> str:
    def title(match: re.Match[str]) -> str:
        column = _named(columns, match[2])
        return column.title if column else match[2].upper()

    return _FIELD.sub(title, template.replace("\\t", "\t"))


def _aligned(lines: list[str]) -> list[str]:
    rows = [line.split("\t") for line in lines]
    count = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    return [_line(row, widths) for row in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(
        f"{clip(cell, width):<{width}}" for cell, width in zip(cells, widths, strict=False)
    ).rstrip()


def _fits_by_first(widths: Sequence[int], columns: Sequence[Column], *, width: int) -> bool:
    first = max(range(len(columns)), key=lambda i: columns[i].shrink)
    return _excess(widths, width) <= max(0, widths[first] - MIN_WIDTH)


def _excess(widths: Sequence[int], width: int) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1) - width


def _shrink(widths: list[int], columns: Sequence[Column], *, width: int) -> None:
    excess = _excess(widths, width)
    order = sorted((i for i, c in enumerate(columns) if c.shrink), key=lambda i: -columns[i].shrink)
    for i in order:
        if excess <= 0:
            return
        smaller = max(MIN_WIDTH, widths[i] - excess, 0)
        if smaller < widths[i]:
            excess -= widths[i] - smaller
            widths[i] = smaller


def _bold(text: str) -> str:
    has_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[1m{text}\x1b[0m" if has_colour else text

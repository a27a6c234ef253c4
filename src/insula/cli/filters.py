# SPDX-License-Identifier: Apache-2.0
"""`ps --filter`: which containers of a list are meant.  The words are docker's.

Of several filters with the same key one must hold, of different keys each.  Out of scope: filters of the API, which has none.
"""

from __future__ import annotations

from insula.cli.parser import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula.client.http import Json


def _has_label(row: Json, wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    labels = row["spec"].get("labels") or {}
    return name in labels and (not equals or labels[name] == value)


def _is_of_image(row: Json, wanted: str) -> bool:
    names = (str(row["spec"]["image"]), str(row.get("image", "")).removeprefix("sha256:"))
    return names[0] in (wanted, f"{wanted}:latest") or names[1].startswith(wanted.removeprefix("sha256:"))


HOLDS: dict[str, Callable[[Json, str], bool]] = {
    "name": lambda row, wanted: wanted in str(row["name"]),
    "id": lambda row, wanted: str(row["id"]).startswith(wanted),
    "status": lambda row, wanted: str(row["status"]) == wanted,
    "label": _has_label,
    "ancestor": _is_of_image,
    "tenant": lambda row, wanted: str(row["tenant"]) == wanted,
}


def parse(words: Sequence[str]) -> dict[str, list[str]]:
    """Read `KEY=VALUE`s.  Raises: UsageError."""
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in HOLDS or not equals:
            raise UsageError(
                f"cannot filter by `{word}`", hint="KEY=VALUE, KEY one of " + ", ".join(sorted(HOLDS))
            )
        found.setdefault(key, []).append(value)
    return found


def select(rows: Sequence[Json], filters: dict[str, list[str]]) -> list[Json]:
    """Return the rows that are meant."""
    return [
        row
        for row in rows
        if all(any(HOLDS[key](row, value) for value in values) for key, values in filters.items())
    ]

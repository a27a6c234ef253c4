# SPDX-License-Identifier: Apache-2.0
"""`insula __complete -- WORD…`: what the last word can become, one a line.  Hidden; the completion scripts ask it.

What a place takes is told by its metavar: CONTAINER, IMAGE, NETWORK, VOLUME, HOST.
"""

from __future__ import annotations

import argparse

from insula.cli.main import GLOBAL_OPTIONS, load
from insula.cli.parser import Parser
from insula.cli.table import ALIASES, RAW, SUMMARIES
from insula.model.errors import InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from insula.client.http import Client

HELP = "candidates for the shell's completion"
_LISTS = {
    "CONTAINER": "containers",
    "IMAGE": "images",
    "NETWORK": "networks",
    "VOLUME": "volumes",
    "HOST": "hosts",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="...")


def run(options: argparse.Namespace, client: Client) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    for candidate in candidates(words or [""], client):
        print(candidate)
    return 0


def candidates(words: list[str], client: Client) -> list[str]:
    """Return what the last of the words can become."""
    *before, prefix = words
    while before and before[0] in GLOBAL_OPTIONS:
        before = before[2:]
    if not before:
        return _beginning(prefix, SUMMARIES)
    command, *own = [*ALIASES.get(before[0], (before[0],)), *before[1:]]
    if command in RAW or command not in SUMMARIES:
        return []
    parser: argparse.ArgumentParser = Parser(prog=command)
    load(command).arguments(parser)
    return _within(parser, own, prefix=prefix, client=client)


def _within(parser: argparse.ArgumentParser, words: list[str], *, prefix: str, client: Client) -> list[str]:
    positionals, pending, count = _places(parser), None, 0
    for number, word in enumerate(words):
        if pending is not None:
            pending = None
        elif word.startswith("-") and word != "-":
            pending = _awaiting(parser, word)
        elif positionals and isinstance(positionals[0].choices, dict):
            chosen = positionals[0].choices.get(word)
            return (
                [] if chosen is None else _within(chosen, words[number + 1 :], prefix=prefix, client=client)
            )
        else:
            count += 1
    if pending is None and prefix.startswith("-") and not _is_program(positionals, count):
        return _beginning(prefix, [name for action in _actions(parser) for name in action.option_strings])
    place = pending or (positionals[min(count, len(positionals) - 1)] if positionals else None)
    if place is None or (pending is None and count >= len(positionals) and place.nargs not in ("+", "*")):
        return []
    return _beginning(prefix, _values(place, prefix=prefix, client=client))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001  argparse has no public way to its options


def _places(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in _actions(parser) if not action.option_strings]


def _is_program(places: list[argparse.Action], count: int) -> bool:
    return count < len(places) and places[count].nargs == "..."


# The option whose value the next word is.
def _awaiting(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    name = word if word.startswith("--") else "-" + word[-1]
    for action in _actions(parser):
        if name in action.option_strings and action.nargs != 0:
            return action
    return None


def _values(place: argparse.Action, *, prefix: str, client: Client) -> Iterable[str]:
    if place.choices is not None:
        return [str(choice) for choice in place.choices]
    kind = _LISTS.get(str(place.metavar))
    if kind is None:
        return []
    try:
        rows = client.get(f"/v1/{kind}", {"all": "1"} if kind == "containers" else None)
    except InsulaError:
        return []
    return [name for row in rows for name in row.get("names") or [row.get("name", "")]]


def _beginning(prefix: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name and name.startswith(prefix)})

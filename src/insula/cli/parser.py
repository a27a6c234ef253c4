# SPDX-License-Identifier: Apache-2.0
"""argparse as the commands use it: no abbreviations, errors as `UsageError`, one line of pointer to the help."""

from __future__ import annotations

import os
from argparse import ArgumentParser, HelpFormatter

from insula.model.errors import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class UsageError(BadRequest):
    """The command line itself is wrong."""


def _width() -> int:
    wished = os.environ.get("COLUMNS", "")
    return max(40, int(wished)) - 2 if wished.isascii() and wished.isdigit() else 98


class Formatter(HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=30, width=_width()
        )  # without a width argparse imports shutil


class Parser(ArgumentParser):
    """`prog` is `insula COMMAND`.  Sub-parsers are made of this class too."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", Formatter)
        settings["allow_abbrev"] = False
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        text = message[:1].lower() + message[1:]
        raise UsageError(f"cannot understand `{self.prog}`: {text}", hint=f"see `{self.prog} --help`")


def add_verbs(parser: ArgumentParser, verbs: dict[str, str]) -> dict[str, ArgumentParser]:
    """Give a command its second words (`image ls`), each with its line of help.  The chosen one is `options.verb`."""
    actions = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    return {name: actions.add_parser(name, help=line, description=line) for name, line in verbs.items()}

# SPDX-License-Identifier: Apache-2.0
"""argparse as the commands use it: no abbreviations, errors as `UsageError`, one line of pointer to the help."""

from __future__ import annotations

import os
from argparse import ArgumentParser, HelpFormatter

from insula.cli.table import FOREIGN_OPTIONS
from insula.model.errors import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action, _MutuallyExclusiveGroup
    from collections.abc import Iterable
    from typing import Any, NoReturn


class UsageError(BadRequest):
    """The command line itself is wrong."""


MANY_OPTIONS = 4
"""More are one word of the usage line: the list below it tells them better."""


def _width() -> int:
    wished = os.environ.get("COLUMNS", "")
    if wished.isascii() and wished.isdigit():
        return max(40, int(wished)) - 2
    try:
        return max(40, os.get_terminal_size(1).columns) - 2
    except OSError:
        return 98


class Formatter(HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=30, width=_width()
        )  # without a width argparse imports shutil

    def _format_usage(
        self,
        usage: str | None,
        actions: Iterable[Action],
        groups: Iterable[_MutuallyExclusiveGroup],
        prefix: str | None,
    ) -> str:
        every = list(actions)
        words = [each for each in every if not each.option_strings]
        if usage is None and len(every) - len(words) > MANY_OPTIONS:
            usage = self._prog.replace("%", "%%") + " [OPTIONS] " + self._format_args_of(words)
        return super()._format_usage(usage, every, groups, prefix)

    def _format_args_of(self, words: list[Action]) -> str:
        parts = (self._format_args(each, str(each.metavar or each.dest)) for each in words)
        return " ".join(parts).replace("...", "[COMMAND ...]") if words[-1:] else ""

    def _format_action_invocation(self, action: Action) -> str:
        # `-e, --env NAME` where argparse says `-e NAME, --env NAME`.
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(ArgumentParser):
    """`prog` is `insula COMMAND`.  Sub-parsers are made of this class too."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", Formatter)
        settings["allow_abbrev"] = False
        super().__init__(**settings)
        self._positionals.title = "arguments"

    def error(self, message: str) -> NoReturn:
        text = message[:1].lower() + message[1:]
        option = text.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        hint = FOREIGN_OPTIONS.get(option, f"see `{self.prog} --help`")
        raise UsageError(f"cannot understand `{self.prog}`: {text}", hint=hint)


def add_verbs(parser: ArgumentParser, verbs: dict[str, str]) -> dict[str, ArgumentParser]:
    """Give a command its second words (`image ls`), each with its line of help.  The chosen one is `options.verb`."""
    actions = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    return {name: actions.add_parser(name, help=line, description=line) for name, line in verbs.items()}

# SPDX-License-Identifier: Apache-2.0
"""The command `insula`: find the command's module, parse, run, explain failures.  Nothing else is imported.

Exit codes: 125 for a wrong command line, and for insula's own failure in run, create and exec (126: not executable, 127:
not found, else the program's, 128 + signal); 1 for any other failure; 130 after ctrl-c; 141 when nobody reads the output.
"""

from __future__ import annotations

import os
import sys

from insula.cli.table import (
    ALIASES,
    FOREIGN,
    GROUPS,
    HIDDEN,
    NOUNS,
    OWN_FAILURE,
    RAW,
    SUMMARIES,
    VERB_ALIASES,
    exit_code,
)
from insula.model.errors import InsulaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType, TracebackType
    from typing import TextIO

EXIT_INTERRUPTED = 130
EXIT_NOBODY_READS = 141


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    sys.excepthook = _explain_defect
    _open_streams()
    arguments = sys.argv[1:] if argv is None else argv
    command = ""
    try:
        where, command, rest = split(arguments)
        code = _dispatch(where, command, rest=rest)
        sys.stdout.flush()
        return code
    except InsulaError as error:
        report(error)
        is_usage = type(error).__name__ == "UsageError"
        return OWN_FAILURE if is_usage else exit_code(command, error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it flushes at its end
        return EXIT_NOBODY_READS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as error:  # argparse after --help
        return error.code if isinstance(error.code, int) else OWN_FAILURE
    except OSError as error:
        place = f" `{error.filename}`" if error.filename else ""
        report(
            InsulaError(f"cannot use{place or ' a file or socket'}: {(error.strerror or str(error)).lower()}")
        )
        return exit_code(command, "internal")


def _open_streams() -> None:
    # What the caller has closed: else the next file or connection would become this process's output.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = sys.stdout or _writer(1), sys.stderr or _writer(2)


def _writer(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False)


def _inert(text: str) -> str:
    # It may quote what somebody else wrote, who must not steer this terminal.
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def report(error: InsulaError) -> None:
    """Print an error and its cure to stderr."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            pass
    print(f"insula: {_inert(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {_inert(error.hint)}", file=sys.stderr)


class Where:
    """The global options: to which insulad, as whom, and whose things are meant."""

    def __init__(self) -> None:
        self.host = self.identity = self.tenant = ""

    def take(self, word: str, rest: list[str]) -> bool:
        """Take one option with its value.  Returns: False if it is none of ours."""
        name, equals, value = word.partition("=")
        if word.startswith("-H") and len(word) > 2:
            name, equals, value = "-H", "=", word[2:]
        field = GLOBAL_OPTIONS.get(name)
        if field is None:
            return False
        if not (equals or rest):
            raise _usage(f"cannot use `{word}`: its value is missing", hint="see `insula --help`")
        setattr(self, field, value if equals else rest.pop(0))
        return True


GLOBAL_OPTIONS = {"-H": "host", "--host": "host", "--identity": "identity", "--tenant": "tenant"}


def split(arguments: list[str]) -> tuple[Where, str, list[str]]:
    """Cut the command line into the global options, the command and its own arguments."""
    where, rest = Where(), list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return where, "--help", rest
        if word in ("-v", "--version"):
            return where, "version", ["--client"]
        if not where.take(word, rest):
            raise _usage(f"cannot use `{word}`: not a global option", hint="see `insula --help`")
    if not rest:
        return where, "--help", []
    command, *own = rest
    if command == "container" and own:
        command, *own = own
    if command in NOUNS and own:
        own[0] = VERB_ALIASES.get(own[0], own[0])
    words = ALIASES.get(command, (command,))
    return where, words[0], [*words[1:], *own]


def load(command: str) -> ModuleType:
    """Import one command's module.

    Raises: UsageError for an unknown command, naming the nearest.
    """
    if command not in SUMMARIES and command not in HIDDEN:
        raise _usage(f"cannot run `{command}`: no such command", hint=_in_place_of(command))
    name = "complete" if command == "__complete" else command
    return __import__(f"insula.cli.commands.{name}", fromlist=("run",))


def _in_place_of(command: str) -> str:
    if command in FOREIGN:
        return FOREIGN[command]
    from difflib import get_close_matches

    near = get_close_matches(command, [*SUMMARIES, *ALIASES], n=1)
    return f"did you mean `insula {near[0]}`?" if near else "see `insula --help`"


def help_text() -> str:
    """Return the overview of all commands."""
    lines = [
        "Usage: insula [-H HOST] COMMAND ...",
        "",
        "One Linux host becomes many isolated systems that can be carried, running, to",
        "another host.",
    ]
    for title, commands in GROUPS:
        lines += ["", f"{title}:", *(f"  {name:<12}{line}" for name, line in commands)]
    lines += [
        "",
        "Options:",
        "  -H, --host unix:///PATH   socket of insulad (default: $INSULA_HOST, else the",
        "                            identity's host, else unix:///run/insula/api.sock)",
        "  -H, --host tls://NAME:PORT",
        "                            an insulad on another machine",
        "  --identity FILE           who you are there (default: $INSULA_IDENTITY)",
        "  --tenant TENANT           whose things are meant (operators and admins)",
        "  -h, --help                this page; `insula COMMAND --help` tells more",
        "  -v, --version             version of this program",
        "",
        "Begin with `insula doctor`, `insula daemon` (root), `insula run -it host bash`.",
    ]
    return "\n".join(lines)


def _dispatch(where: Where, command: str, *, rest: list[str]) -> int:
    if command == "--help":
        print(help_text())
        return 0
    if command == "help":
        if not rest:
            print(help_text())
            return 0
        command, rest = rest[0], ["--help"]
    module = load(command)
    if command in RAW:
        if where.host:
            os.environ["INSULA_HOST"] = where.host
        return int(module.run(rest))
    from insula.cli.parser import Parser
    from insula.client.http import Client

    parser = Parser(prog=f"insula {command}", description=SUMMARIES.get(command))
    module.arguments(parser)
    options = parser.parse_args(rest)
    return int(module.run(options, Client(where.host, identity=where.identity, tenant=where.tenant)))


def _usage(message: str, *, hint: str) -> InsulaError:
    from insula.cli.parser import UsageError

    return UsageError(message, hint=hint)


def _explain_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if os.environ.get("INSULA_DEBUG"):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"insula: defect in insula: {kind.__name__}: {error}", file=sys.stderr)
    print("  hint: set INSULA_DEBUG=1 to see where, and report it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Read rules from TOML, strictly: a wrong one is refused with its line and the reason, as is one that could never match.

Pure.  Source: https://toml.io/en/v1.0.0.
"""

import re
import tomllib
import urllib.parse
from collections.abc import Collection, Iterator

import msgspec

from insula.model.errors import InvalidRule
from insula.model.folders import CUT
from insula.model.monitor import EventKind
from insula.monitor.names import judge_call, judge_error
from insula.monitor.rules import CALLED, Rule, RuleAction, kind_of_call, kinds_of, needs_of

MAX_COMMAND_BYTES = 15
"""Of a thread's name: prctl(2), PR_SET_NAME."""
_HINT = "see docs/rules.md"
_PATTERN = frozenset("*?[")
_ANY_CALL = frozenset({EventKind.SECCOMP, EventKind.DRIFT})
"""Kinds as which each system call can be told."""
_HEAD = re.compile(r"\s*\[\[\s*rule\s*\]\]")
_QUOTED = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*", re.DOTALL
)
"""Strings, and comments."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: tuple[dict[str, object], ...] = ()


class _Wrong(Exception):
    """What is wrong with a rule, and with which of its fields; none: with the whole."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def read_rules(text: str, *, file: str) -> tuple[Rule, ...]:
    """Read the rules of a file.  Raises: InvalidRule with file, line and reason."""
    try:
        raw = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRule(f"cannot read rules of `{file}`: {error}", hint=_HINT) from None
    except msgspec.ValidationError as error:
        where = _Places(text).of_top(_field_of(str(error)))
        reason = f"cannot read rules of `{file}`{where}: {error}"
        raise InvalidRule(reason, hint="a file holds [[rule]]s") from None
    rules: dict[str, Rule] = {}
    for number, fields in enumerate(raw.rule):
        try:
            rule = _read_one(fields, names=rules.keys())
        except _Wrong as wrong:
            name, where = str(fields.get("name", ""))[:80], _Places(text).of_rule(number, wrong.field)
            who = f" `{name}`" if name else ""
            raise InvalidRule(f"cannot use the rule{who} at `{file}`, {where}: {wrong}", hint=_HINT) from None
        rules[rule.name] = rule
    return tuple(rules.values())


def _read_one(fields: dict[str, object], *, names: Collection[str]) -> Rule:
    try:
        rule = msgspec.convert(fields, Rule)
    except msgspec.ValidationError as error:
        raise _Wrong(_field_of(str(error)), str(error)) from None
    if rule.name in names:
        raise _Wrong("name", f"there is another rule `{rule.name}`")
    for wrong in _judge(rule):
        raise wrong
    return rule


def _judge(rule: Rule) -> Iterator[_Wrong]:
    """Yield what is wrong with a rule."""
    if (rule.action is RuleAction.WEBHOOK) != (rule.url != ""):
        field = "url" if rule.url else "action"
        yield _Wrong(field, "`url` belongs to action `webhook`, which needs one")
    if rule.url and not _is_address(rule.url):
        yield _Wrong("url", f"`{rule.url}` is no address of http or https")
    if not any((rule.kinds, rule.calls, rule.paths, rule.addresses)):
        yield _Wrong("", "it has none of kinds, calls, paths and addresses: everything would be an alarm")
    if rule.quiet_s < 0:
        yield _Wrong("quiet_s", "`quiet_s` is less than 0")
    yield from _judge_words(rule)
    yield from _judge_calls(rule)
    yield from _judge_needs(rule)


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_whole and url.isprintable() and " " not in url


def _judge_words(rule: Rule) -> Iterator[_Wrong]:
    for call in rule.calls:
        if reason := judge_call(call):
            yield _Wrong("calls", f"`{call[:80]}`: {reason}")
    for error in rule.errors:
        if error != "none" and (reason := judge_error(error)):
            yield _Wrong("errors", f"`{error[:80]}`: {reason}")
    for command in rule.commands:
        if len(command.encode()) > MAX_COMMAND_BYTES and _PATTERN.isdisjoint(command):
            reason = f"`{command[:80]}` is no thread's name: none has more than {MAX_COMMAND_BYTES} bytes"
            yield _Wrong("commands", reason)


def _judge_calls(rule: Rule) -> Iterator[_Wrong]:
    """Yield calls that are not told as any of the rule's kinds, and kinds as which none of its calls is told."""
    told = {call: kind_of_call(call) for call in rule.calls}
    named = CALLED.intersection(rule.kinds)
    for call, kind in told.items():
        if kind is None and not named & _ANY_CALL:
            yield _Wrong("calls", f"`{call}` is only counted, unless `kinds` asks for `seccomp` or `drift`")
        if kind is not None and named and not named & {kind, *_ANY_CALL}:
            yield _Wrong("calls", f"`{call}` is told as kind `{kind}`, which is not among `kinds`")
    for kind in sorted(named - _ANY_CALL) if told else ():
        if kind not in told.values():
            yield _Wrong("kinds", f"none of `calls` is told as kind `{kind}`")


def _judge_needs(rule: Rule) -> Iterator[_Wrong]:
    """Yield fields that never hold for events of a kind that the rule is about."""
    needs, kinds = needs_of(rule), sorted(kinds_of(rule))
    for need in needs:
        for kind in kinds:
            if kind not in need.kinds:
                yield _Wrong(
                    need.field, f"no event of kind `{kind}` has {need.what}, as `{need.field}` wants"
                )
    if needs and not kinds:
        wanted = " and ".join(sorted({need.what for need in needs}))
        yield _Wrong(needs[-1].field, f"no event has {wanted}")


def warnings_of(rules: Collection[Rule], *, untold: Collection[EventKind] = ()) -> tuple[str, ...]:
    """Return what is doubtful about rules.  untold: kinds that this host's kernel tells nothing of."""
    return tuple(f"rule `{rule.name}`: {doubt}" for rule in rules for doubt in _doubts(rule, untold))


def _doubts(rule: Rule, untold: Collection[EventKind]) -> Iterator[str]:
    kinds = kinds_of(rule)
    missing = sorted(kinds.intersection(untold))
    if missing:
        words = ", ".join(f"`{kind}`" for kind in missing)
        end = "" if kinds.difference(untold) else ": it never acts"
        yield f"this kernel tells no events of kind {words} (see `insula doctor`){end}"
    if kinds & {EventKind.EXEC, EventKind.FILE}:
        for path in (*rule.paths, *rule.except_paths):
            if path[:1] not in ("/", CUT, *_PATTERN):
                yield f"`{path}` begins with no `/`: it fits only a path that a program gave like this; `*/{path}` fits the others"


def _field_of(message: str) -> str:
    # As `Expected `int`, got `str` - at `$.calls[...]``, or `Object contains unknown field `x``.
    found = re.search(r"`\$\.(\w+)|unknown field `([^`]*)`", message)
    return (found[1] or found[2]) if found else ""


class _Places:
    """Where in a text what of rules stands."""

    def __init__(self, text: str) -> None:
        bare = _QUOTED.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        self._lines = bare.split("\n")
        self._heads = [number for number, line in enumerate(self._lines) if _HEAD.match(line)]

    def of_rule(self, number: int, field: str) -> str:
        """Return `line 7`: of a field of a rule, or of its head; `rule 2` if it has none, as in `rule = [{…}]`."""
        if number >= len(self._heads):
            return f"rule {number + 1}"
        first, *others = (*self._heads[number:], len(self._lines))
        return f"line {self._find(field, range(first, others[0]), default=first) + 1}"

    def of_top(self, field: str) -> str:
        """Return `, line 7`: of a field, or table, of the file itself; empty: nowhere."""
        found = self._find(field, range(len(self._lines)), default=-1)
        return f", line {found + 1}" if found >= 0 else ""

    def _find(self, field: str, lines: range, *, default: int) -> int:
        begins = re.compile(rf"[\s\[]*{re.escape(field)}\s*[=.\]]") if field else _HEAD
        return next((number for number in lines if begins.match(self._lines[number])), default)

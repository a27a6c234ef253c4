# SPDX-License-Identifier: Apache-2.0
"""Rules: which events of which containers are an alarm, and what follows.  Read from TOML, strictly.  Pure.

    [[rule]]
    name = "shell"
    kinds = ["exec"]
    paths = ["/bin/sh", "/usr/bin/bash"]
    containers = ["web-*"]
    action = "pause"

Every field that is given must hold; of several patterns one must match.  Source: https://toml.io/en/v1.0.0.
"""

import tomllib
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from insula.model.errors import InvalidRule
from insula.model.monitor import Event, EventKind, TraceWish
from insula.monitor.describe import is_writing
from insula.monitor.layout import Kind
from insula.monitor.shapes import kind_of

RuleName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_HEAD = "[[rule]]"
USUAL = frozenset(
    {
        EventKind.FILE,
        EventKind.NETWORK,
        EventKind.EXEC,
        EventKind.MOUNT,
        EventKind.IDENTITY,
        EventKind.KERNEL,
    }
)
"""What a rule is about that names neither kinds nor calls."""


class RuleAction(StrEnum):
    """What follows."""

    LOG = "log"
    """Into insulad's log, and told by `insula events`: so are all others, too."""
    WEBHOOK = "webhook"
    """POST the alarm as JSON to `url`."""
    PAUSE = "pause"
    CHECKPOINT = "checkpoint"
    """Save its state as evidence, and end it."""
    KILL = "kill"


class Rule(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One rule.  Empty: any."""

    name: RuleName
    description: str = ""
    kinds: tuple[EventKind, ...] = ()
    calls: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """As `EPERM`; `any`: what failed; `none`: what did not."""
    commands: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    except_paths: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    users: tuple[int, ...] = ()
    is_writing: bool = False
    """Only what changes files: opened for writing, made, renamed, removed."""
    is_new: bool = False
    """Only an address that the container has not connected to since insulad began to watch it."""
    containers: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    action: RuleAction = RuleAction.LOG
    url: str = ""
    quiet_s: int = 60
    """For so long the same rule does not act on the same container again."""

    def is_meant(self, *, container: str, tenant: str) -> bool:
        """Tell whether the rule is about a container."""
        return _fits(container, self.containers) and _fits(tenant, self.tenants)

    def matches(self, event: Event) -> bool:
        """Tell whether an event of a container that is meant is an alarm, but for `is_new`."""
        return (
            (not self.kinds or event.kind in self.kinds or _kind_of_attempt(event) in self.kinds)
            and (not self.calls or event.call in self.calls)
            and (not self.errors or _has_error(event, self.errors))
            and (not self.commands or _fits(event.command, self.commands))
            and (
                not self.paths
                or any(_fits(path, self.paths) for path in (event.path, event.other_path) if path)
            )
            and not (self.except_paths and event.path and _fits(event.path, self.except_paths))
            and (not self.addresses or (event.address != "" and _fits(event.address, self.addresses)))
            and (not self.details or _fits(event.detail, self.details))
            and (not self.users or event.user in self.users)
            and (not self.is_writing or is_writing(event))
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: tuple[dict[str, object], ...] = ()


def _kind_of_attempt(event: Event) -> EventKind | None:
    """Return what a call that a filter answered would have been: an attempt is told as `seccomp` if a rule asks for that."""
    return kind_of_call(event.call) if event.kind is EventKind.SECCOMP else None


def kind_of_call(call: str) -> EventKind | None:
    """Return the kind that a system call is told as; None: it is only counted."""
    kind = kind_of(call)
    return EventKind(Kind(kind).name.lower()) if kind else None


def _fits(text: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _has_error(event: Event, wanted: Sequence[str]) -> bool:
    if event.error == "":
        return "none" in wanted
    return "any" in wanted or event.error in wanted


def read_rules(text: str, *, file: str) -> tuple[Rule, ...]:
    """Read the rules of a file.  Raises: InvalidRule with file, line and reason."""
    try:
        raw = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRule(f"cannot read rules of `{file}`: {error}", hint="see docs/rules.md") from None
    except msgspec.ValidationError as error:
        raise InvalidRule(f"cannot read rules of `{file}`: {error}", hint="a file holds [[rule]]s") from None
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if line.strip() == _HEAD]
    rules: list[Rule] = []
    for number, fields in enumerate(raw.rule):
        where = f"`{file}`, line {lines[number] if number < len(lines) else '?'}"
        try:
            rule = msgspec.convert(fields, Rule)
        except msgspec.ValidationError as error:
            raise InvalidRule(f"cannot use the rule at {where}: {error}", hint="see docs/rules.md") from None
        _check(rule, where=where, names={each.name for each in rules})
        rules.append(rule)
    return tuple(rules)


def _check(rule: Rule, *, where: str, names: set[str]) -> None:
    reason = ""
    if rule.name in names:
        reason = f"there is another rule `{rule.name}`"
    elif (rule.action is RuleAction.WEBHOOK) != (rule.url != ""):
        reason = "`url` belongs to action `webhook`, which needs one"
    elif rule.url and not rule.url.startswith(("http://", "https://")):
        reason = f"`{rule.url}` is no address of http or https"
    elif not any((rule.kinds, rule.calls, rule.paths, rule.addresses)):
        reason = "it has none of kinds, calls, paths and addresses: everything would be an alarm"
    elif rule.quiet_s < 0:
        reason = "`quiet_s` is less than 0"
    if reason:
        raise InvalidRule(f"cannot use the rule `{rule.name}` at {where}: {reason}", hint="see docs/rules.md")


def wish_of(rules: Sequence[Rule]) -> TraceWish:
    """Return what must be watched for some rules: what each of them asks for."""
    kinds = {kind for rule in rules for kind in kinds_of(rule)}
    return TraceWish(kinds=tuple(sorted(kinds)))


def kinds_of(rule: Rule) -> frozenset[EventKind]:
    """Return the kinds that a rule is about: those it names, or those that its calls are told as, or `USUAL`."""
    if rule.kinds or not rule.calls:
        return frozenset(rule.kinds or USUAL)
    return frozenset(filter(None, map(kind_of_call, rule.calls)))

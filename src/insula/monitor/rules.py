# SPDX-License-Identifier: Apache-2.0
"""Rules: which events of which containers are an alarm, and what follows.  Pure.

In TOML (`rule_text.py` reads it):

    [[rule]]
    name = "shell"
    kinds = ["exec"]
    paths = ["/bin/sh", "/usr/bin/bash"]
    containers = ["web-*"]
    action = "pause"

Every field that is given must hold; of several patterns one must match.  Source: https://toml.io/en/v1.0.0.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

import msgspec

from insula.model.folders import CUT, normal_path
from insula.model.monitor import Event, EventKind, TraceWish
from insula.model.record import Fact
from insula.monitor.describe import is_writing
from insula.monitor.layout import Kind
from insula.monitor.shapes import kind_of

RuleName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
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


CALLED = frozenset({EventKind.SECCOMP, EventKind.DRIFT, *USUAL}) - {EventKind.EXEC}
"""Kinds of which events name a system call, and its error."""
_WITH_PATH = frozenset({EventKind.EXEC, EventKind.FILE, EventKind.MOUNT, EventKind.SECCOMP, EventKind.DRIFT})
_WITH_ADDRESS = frozenset({EventKind.NETWORK, EventKind.SECCOMP, EventKind.DRIFT})
_OTHER_IS_TEXT = frozenset({"mount", "symlink", "symlinkat"})
"""Calls whose other path need be none: the name of a file system, what a link says."""


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
    """What fits one of these is not among `paths`."""
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
            and (not self.addresses or (event.address != "" and _fits(event.address, self.addresses)))
            and (not self.details or _fits(event.detail, self.details))
            and (not self.users or event.user in self.users)
            and (not self.is_writing or is_writing(event))
            and self._has_path(event)
        )

    def _has_path(self, event: Event) -> bool:
        if not self.paths and not self.except_paths:
            return True
        is_other_meant = self.paths or event.call not in _OTHER_IS_TEXT
        told = [path for path in (event.path, event.other_path if is_other_meant else "") if path]
        # What is cut may lead anywhere: to be too long must not be a way around a rule.
        return event.is_cut or (any(map(self._is_about, told)) if told else not self.paths)

    def _is_about(self, path: str) -> bool:
        """Tell whether the rule is about a path, however it is written: an exception must not be a way around it."""
        normal = normal_path(path)
        if not _fits(path, self.paths) and not _fits(normal, self.paths) and not _may_fit(normal, self.paths):
            return False
        return not (self.except_paths and _fits(normal, self.except_paths))


class RulesJudged(Fact, kw_only=True, frozen=True):
    """Rules that were read, and what is doubtful about them."""

    rules: tuple[Rule, ...]
    warnings: tuple[str, ...] = ()
    cost: str = ""
    """What this host pays for watching as long as a container runs that they are about."""


def _kind_of_attempt(event: Event) -> EventKind | None:
    """Return what a call that a filter answered would have been: an attempt is told as `seccomp` if a rule asks for that."""
    return kind_of_call(event.call) if event.kind is EventKind.SECCOMP else None


def kind_of_call(call: str) -> EventKind | None:
    """Return the kind that a system call is told as; None: it is only counted."""
    kind = kind_of(call)
    return EventKind(Kind(kind).name.lower()) if kind else None


def _fits(text: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _may_fit(path: str, patterns: Sequence[str]) -> bool:
    """Tell whether a path of which only the innermost folders are known fits, for some that they may lie in."""
    rest = path.removeprefix(CUT)
    return rest != path and any(
        fnmatchcase(rest, pattern[at:]) for pattern in patterns for at in range(len(pattern))
    )


def _has_error(event: Event, wanted: Sequence[str]) -> bool:
    if event.error == "":
        return "none" in wanted
    return "any" in wanted or event.error in wanted


def wish_of(rules: Sequence[Rule]) -> TraceWish:
    """Return what must be watched for some rules: what each of them asks for."""
    kinds = {kind for rule in rules for kind in kinds_of(rule)}
    return TraceWish(kinds=tuple(sorted(kinds)))


def kinds_of(rule: Rule) -> frozenset[EventKind]:
    """Return the kinds that a rule is about: those it names, or those of its calls, or what of `USUAL` it can match."""
    if rule.kinds:
        return frozenset(rule.kinds)
    if rule.calls:
        return frozenset(filter(None, map(kind_of_call, rule.calls)))
    return USUAL.intersection(*(need.kinds for need in needs_of(rule)))


class Need(NamedTuple):
    """What an event must have because of a field of a rule."""

    field: str
    what: str
    kinds: frozenset[EventKind]
    """Of events that have it."""


def needs_of(rule: Rule) -> tuple[Need, ...]:
    """Return what an event must have that a rule is to match."""
    needs = (
        (rule.calls, Need("calls", "a system call", CALLED)),
        (rule.errors and "none" not in rule.errors, Need("errors", "an error", CALLED)),
        (rule.paths, Need("paths", "a path", _WITH_PATH)),
        (rule.addresses, Need("addresses", "an address", _WITH_ADDRESS)),
        (rule.is_writing, Need("is_writing", "a change of a file", frozenset({EventKind.FILE}))),
        (rule.is_new, Need("is_new", "an address", _WITH_ADDRESS)),
    )
    return tuple(need for is_asked, need in needs if is_asked)


def call_kinds_of(rules: Iterable[Rule]) -> frozenset[EventKind]:
    """Return the kinds that rules are about and that are seen where system calls are made, by whomever."""
    return frozenset(kind for rule in rules for kind in kinds_of(rule)) & (CALLED - {EventKind.DRIFT})


def cost_of(rules: Sequence[Rule], *, can_hook: bool) -> str:
    """Say what rules cost a host.  can_hook: whether its kernel lets programs be hung at calls (ADR 32)."""
    kinds = ", ".join(f"`{kind}`" for kind in sorted(call_kinds_of(rules)))
    if not rules:
        return "nothing is watched for them"
    if not kinds:
        return "only what happens in containers costs something"
    if can_hook:
        return f"system calls of kind {kinds} become a little slower on the whole host, others do not"
    return (
        f"every system call of the host becomes 90 to 190 ns slower because of {kinds} (see `insula doctor`)"
    )

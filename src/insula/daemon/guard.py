# SPDX-License-Identifier: Apache-2.0
"""Rules at work: which containers are watched because of them, and what is an alarm.

    rules.d/*.toml ─ read at the start and at SIGHUP; a wrong file is refused and what counted before stays ─► rules
    a container is about to run ─► watched for what the rules about it ask (`following.py`) ─► does one match? ─► its action

Every alarm is logged and told by `insula events`; `pause`, `checkpoint`, `kill` and `webhook` come on top
(`reactions.py`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from insula.daemon.following import Following
from insula.daemon.reactions import Reactions
from insula.daemon.sight import Sight
from insula.daemon.watching import WATCHABLE, Watching
from insula.kernel import call_functions
from insula.kernel.bpf_object import CAPABILITY_TRACEPOINT, knows_tracepoint
from insula.model.change import Change, alarm_of
from insula.model.errors import InvalidRule
from insula.model.export import SinkCounts
from insula.model.monitor import Event, EventKind, Lost, TraceLine, TraceWish, in_words
from insula.model.record import ContainerRecord
from insula.monitor.collect import Collector
from insula.monitor.drift import is_power_of_ten
from insula.monitor.rule_text import read_rules, warnings_of
from insula.monitor.rules import Rule, RulesJudged, call_kinds_of, cost_of, kinds_of, wish_of
from insula.monitor.shapes import OUTGOING
from insula.runtime.context import Runtime

LOG = logging.getLogger(__name__)

_UNDER_WAY = ("", "EINPROGRESS")
"""Errors of a connection that is made, or may yet be: who tries in vain first is told when it succeeds."""
MAX_ADDRESSES = 10_000
"""That are remembered of a container, some 1 MB."""


@dataclass
class _Memory:
    """What is remembered of a container as long as it runs."""

    acted: dict[str, float] = field(default_factory=dict)
    """Rule → when it acted last, monotonic seconds."""
    addresses: set[str] = field(default_factory=set)
    """At most MAX_ADDRESSES: what is not among them is new each time."""
    not_remembered: int = 0
    """How often there was no room for one."""


class Guard:
    """The rules that count, and whom they are about."""

    def __init__(
        self,
        runtime: Runtime,
        collector: Collector,
        watching: Watching,
        *,
        sight: Sight,
        folder: Path,
        announce: Callable[[Change], None],
    ) -> None:
        """Raises: InvalidRule, so that insulad does not start with less than its administrator means."""
        self._runtime = runtime
        self._sight = sight
        self._folder = folder
        self._announce = announce
        self._memories: dict[str, _Memory] = {}
        self._reactions = Reactions(runtime)
        self._rules = self._read()
        _log(_warnings(self._rules))
        self._following = Following(
            runtime, collector, watching, wish_of=self._wish_of, take=self._judge, name="guard"
        )

    def _read(self) -> tuple[Rule, ...]:
        found: dict[str, Rule] = {}
        for path in sorted(self._folder.glob("*.toml")):
            try:
                rules = read_rules(path.read_text(encoding="utf-8"), file=str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidRule(f"cannot read rules of `{path}`: {error}") from error
            for rule in rules:
                if rule.name in found:
                    raise InvalidRule(f"cannot use the rule `{rule.name}` of `{path}`: another file has one")
                found[rule.name] = rule
        return tuple(found.values())

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that count."""
        return self._rules

    def counts(self) -> tuple[SinkCounts, ...]:
        """Return what became of the calls of webhooks."""
        return self._reactions.counts()

    def check(self, text: str, *, file: str) -> RulesJudged:
        """Judge rules, and change nothing.  Raises: InvalidRule."""
        return _judged(read_rules(text, file=file))

    def reload(self) -> RulesJudged:
        """Read the rules anew.  Raises: InvalidRule; what counted before stays then."""
        self._rules = self._read()
        self._reactions.keep(self._rules)
        for record in self._runtime.store.list_containers():
            self._following.note(record.id, record)
        return _judged(self._rules)

    def reload_or_keep(self) -> None:
        """As `reload`, for a signal: a wrong file is logged."""
        try:
            _log(self.reload().warnings)
        except InvalidRule as error:
            LOG.error("rules stay as they were", extra={"fields": {"reason": error.message}})

    def before_start(self, record: ContainerRecord) -> None:
        """Take up a container of which nothing runs yet."""
        self._following.before_start(record)

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container."""
        self._following.note(container_id, record)
        if record is None or record.status not in WATCHABLE:
            self._memories.pop(container_id, None)

    def _about(self, record: ContainerRecord) -> tuple[Rule, ...]:
        return tuple(
            rule for rule in self._rules if rule.is_meant(container=record.name, tenant=record.tenant)
        )

    def _wish_of(self, record: ContainerRecord) -> TraceWish | None:
        rules = self._about(record)
        return wish_of(rules) if rules else None

    def _judge(self, record: ContainerRecord, lines: Iterable[TraceLine]) -> None:
        rules = self._about(record)
        memory = self._memories.setdefault(record.id, _Memory())
        for line in lines:
            match line:
                case Lost():
                    LOG.warning(
                        "rules missed events",
                        extra={"fields": {"container": record.id[:12], "events": line.events}},
                    )
                case Event():
                    self._judge_event(record, rules, event=line, memory=memory)
                case _:
                    pass

    def _judge_event(
        self, record: ContainerRecord, rules: Sequence[Rule], *, event: Event, memory: _Memory
    ) -> None:
        is_new = event.address != "" and event.address not in memory.addresses
        for rule in rules:
            if rule.matches(event) and (is_new or not rule.is_new):
                self._alarm(record, rule, event=event, memory=memory)
        is_reached = event.call in OUTGOING and event.error in _UNDER_WAY
        if is_new and is_reached and any(rule.is_new for rule in rules):
            _remember(record, event.address, memory=memory)

    def _alarm(self, record: ContainerRecord, rule: Rule, *, event: Event, memory: _Memory) -> None:
        now = time.monotonic()
        if now - memory.acted.get(rule.name, float("-inf")) < rule.quiet_s:
            return
        memory.acted[rule.name] = now
        told = self._sight.of_export(record.tenant).event(event)
        what = in_words(told)
        fields = {"rule": rule.name, "container": record.name, "event": what}
        LOG.warning("alarm", extra={"fields": fields, "tenant": record.tenant})
        self._announce(alarm_of(record, rule=rule.name, seen=event))
        self._reactions.begin(rule, record, event=told)

    def close(self) -> None:
        """Watch no more."""
        self._following.close()
        self._reactions.close()


def _remember(record: ContainerRecord, address: str, *, memory: _Memory) -> None:
    if len(memory.addresses) < MAX_ADDRESSES:
        memory.addresses.add(address)
        return
    memory.not_remembered += 1
    if is_power_of_ten(memory.not_remembered):
        fields = {"container": record.name, "known": MAX_ADDRESSES, "others": memory.not_remembered}
        LOG.warning(
            "too many addresses: the others are new each time",
            extra={"fields": fields, "tenant": record.tenant},
        )


def _judged(rules: tuple[Rule, ...]) -> RulesJudged:
    cost = cost_of(rules, can_hook=not call_kinds_of(rules) or _can_hook())
    return RulesJudged(rules=rules, warnings=_warnings(rules), cost=cost)


def _can_hook() -> bool:
    try:
        call_functions.try_hook()
    except OSError:
        return False
    return True


def _warnings(rules: Sequence[Rule]) -> tuple[str, ...]:
    return warnings_of(rules, untold=_untold(rules))


def _untold(rules: Iterable[Rule]) -> frozenset[EventKind]:
    """Return what some rules are about and this kernel does not tell: it has `cap_capable` since Linux 6.14."""
    if not any(EventKind.CAPABILITY in kinds_of(rule) for rule in rules):
        return frozenset()
    try:
        is_told = knows_tracepoint(CAPABILITY_TRACEPOINT)
    except OSError:  # there is no libbpf: who would watch says so
        is_told = True
    return frozenset() if is_told else frozenset({EventKind.CAPABILITY})


def _log(warnings: Iterable[str]) -> None:
    for warning in warnings:
        LOG.warning("a rule is doubtful", extra={"fields": {"reason": warning}})

# SPDX-License-Identifier: Apache-2.0
"""Rules at work: which containers are watched because of them, and what follows an alarm.

    rules.d/*.toml ─ read at the start and at SIGHUP; a wrong file is refused and what counted before stays ─► rules
    a container runs ─► subscribed to what the rules about it ask for ─► the guard's thread: does one match? ─► its action

Every alarm is logged and told by `insula events`; `pause`, `checkpoint`, `kill` and `webhook` come on top, in threads of
their own, because they take their time.  A container that has moved here is taken up as one that has started.
"""

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from insula.daemon.sight import Sight
from insula.daemon.watching import Watching
from insula.model.change import Change, alarm_of
from insula.model.errors import InsulaError, InvalidRule, Unsupported, WrongState
from insula.model.grant import Action, Grant, Principal, Role
from insula.model.lifecycle import Status
from insula.model.monitor import Event, Lost, TraceLine, in_words
from insula.model.record import ContainerRecord
from insula.model.spec import CheckpointWish
from insula.monitor.collect import Collector
from insula.monitor.rules import Rule, RuleAction, read_rules, wish_of
from insula.monitor.subscription import Subscription
from insula.runtime.checkpoint import checkpoint
from insula.runtime.context import Runtime
from insula.runtime.pause import pause
from insula.runtime.stop import kill

LOG = logging.getLogger(__name__)

WEBHOOK_S = 10.0
_AT_ONCE = 1000


class Silent:
    """The `Reporter` of `runtime/checkpoint.py` that nobody hears."""

    def check(self) -> None: ...
    def phase(self, name: str) -> None: ...


@dataclass
class _Watch:
    """A container that rules are about."""

    record: ContainerRecord
    rules: tuple[Rule, ...]
    held: ExitStack
    subscription: Subscription
    acted: dict[str, float] = field(default_factory=dict)
    """Rule → when it acted last, monotonic seconds."""
    addresses: set[str] = field(default_factory=set)


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
        self._collector = collector
        self._watching = watching
        self._sight = sight
        self._folder = folder
        self._announce = announce
        self._ready = threading.Event()
        self._lock = threading.RLock()
        self._watches: dict[str, _Watch] = {}
        self._is_closing = False
        self._rules = self._read()
        threading.Thread(target=self._run, name="guard", daemon=True).start()
        self._take_all_up()

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

    def reload(self) -> None:
        """Read the rules anew.  Raises: InvalidRule; what counted before stays then."""
        rules = self._read()
        with self._lock:
            self._rules = rules
            for container_id in list(self._watches):
                self._drop(container_id)
        self._take_all_up()

    def reload_or_keep(self) -> None:
        """As `reload`, for a signal: a wrong file is logged."""
        try:
            self.reload()
        except InvalidRule as error:
            LOG.error("rules stay as they were", extra={"fields": {"reason": error.message}})

    def _take_all_up(self) -> None:
        for record in self._runtime.store.list_containers():
            self.note(record.id, record)

    def note(self, container_id: str, record: ContainerRecord | None) -> None:
        """Take a change of a container."""
        with self._lock:
            watch = self._watches.get(container_id)
            if record is None or record.status in (Status.EXITED, Status.MOVED):
                self._drop(container_id)
            elif record.status is Status.RUNNING and (watch is None or watch.record.pid != record.pid):
                self._drop(container_id)
                self._watch(record)

    def _watch(self, record: ContainerRecord) -> None:
        rules = tuple(
            rule for rule in self._rules if rule.is_meant(container=record.name, tenant=record.tenant)
        )
        if not rules:
            return
        held = ExitStack()
        try:
            subject = self._watching.subject(record)
            subscription = held.enter_context(
                self._collector.subscribe(subject, wish_of(rules), notify=self._ready.set)
            )
        except (Unsupported, WrongState) as error:
            LOG.warning("no rule holds for a container", extra={"fields": {"reason": error.message}})
            return
        self._watches[record.id] = _Watch(record, rules, held, subscription)

    def _drop(self, container_id: str) -> None:
        watch = self._watches.pop(container_id, None)
        if watch is not None:
            self._judge(watch)
            watch.held.close()

    def _run(self) -> None:
        while not self._is_closing:
            self._ready.wait()
            self._ready.clear()
            with self._lock:
                for watch in list(self._watches.values()):
                    self._judge(watch)

    def _judge(self, watch: _Watch) -> None:
        while lines := watch.subscription.read(at_most=_AT_ONCE):
            for line in lines:
                self._judge_line(watch, line)

    def _judge_line(self, watch: _Watch, line: TraceLine) -> None:
        if isinstance(line, Lost):
            LOG.warning(
                "rules missed events",
                extra={"fields": {"container": watch.record.id[:12], "events": line.events}},
            )
        if not isinstance(line, Event):
            return
        is_new = line.address != "" and line.address not in watch.addresses
        for rule in watch.rules:
            if rule.matches(line) and (is_new or not rule.is_new):
                self._alarm(watch, rule, event=line)
        if line.call in ("connect", "sendto"):
            watch.addresses.add(line.address)

    def _alarm(self, watch: _Watch, rule: Rule, *, event: Event) -> None:
        now = time.monotonic()
        if now - watch.acted.get(rule.name, float("-inf")) < rule.quiet_s:
            return
        watch.acted[rule.name] = now
        record = watch.record
        told = self._sight.of_export(record.tenant).event(event)
        what = in_words(told)
        LOG.warning("alarm", extra={"fields": {"rule": rule.name, "container": record.name, "event": what}})
        self._announce(alarm_of(record, rule=rule.name, seen=event))
        if rule.action is not RuleAction.LOG:
            name = f"rule {rule.name}"
            threading.Thread(target=self._act, args=(rule, record, told), name=name, daemon=True).start()

    def _act(self, rule: Rule, record: ContainerRecord, event: Event) -> None:
        grant = Grant(
            principal=Principal(name=f"rule {rule.name}", role=Role.ADMIN, uid=0),
            action=Action.CONTROL,
            tenant=record.tenant,
        )
        try:
            match rule.action:
                case RuleAction.PAUSE:
                    pause(grant, self._runtime, record.id)
                case RuleAction.KILL:
                    kill(grant, self._runtime, record.id, signal="KILL")
                case RuleAction.CHECKPOINT:
                    wish = CheckpointWish(name=f"{rule.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
                    checkpoint(grant, self._runtime, record.id, wish=wish, reporter=Silent())
                case RuleAction.WEBHOOK:
                    _post(rule, record, event=event)
        except (InsulaError, OSError) as error:
            LOG.error(
                "a rule could not act",
                extra={"fields": {"rule": rule.name, "container": record.name, "reason": str(error)}},
            )

    def close(self) -> None:
        """Watch no more."""
        self._is_closing = True
        self._ready.set()
        with self._lock:
            for container_id in list(self._watches):
                self._watches.pop(container_id).held.close()


def _post(rule: Rule, record: ContainerRecord, *, event: Event) -> None:
    alarm = {
        "rule": rule.name,
        "description": rule.description,
        "container": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "at": event.at,
        "event": in_words(event),
    }
    request = urllib.request.Request(  # http or https: `monitor/rules.py` has looked
        rule.url, data=json.dumps(alarm).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=WEBHOOK_S):
        pass

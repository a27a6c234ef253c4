# SPDX-License-Identifier: Apache-2.0
"""What follows an alarm: a container is stopped in one of three ways, or somebody is called.

    pause, checkpoint, kill ─► a thread; for each rule and container one at a time: another alarm meanwhile adds nothing
    webhook ─► a queue for each rule, bounded ─► POST; what fails is tried again, what finds no room is counted

Out of scope: what is an alarm (`guard.py`).
"""

import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from insula.export.sink import Sink, Unavailable
from insula.kernel.threads import begin
from insula.model.errors import InsulaError
from insula.model.export import SinkCounts
from insula.model.grant import Action, Grant, Principal, Role
from insula.model.monitor import Event, in_words
from insula.model.record import ContainerRecord
from insula.model.spec import CheckpointWish
from insula.monitor.rules import Rule, RuleAction
from insula.runtime.checkpoint import MAX_NAME, checkpoint
from insula.runtime.context import Runtime
from insula.runtime.pause import pause
from insula.runtime.stop import kill

LOG = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Calls of one rule's webhook."""
CALLS_PER_S = 100
"""Of one rule's webhook: more would be the processor time of all else that insulad does."""
CALL_S = 10.0
"""How long an answer may take."""
_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
"""Answers, besides those from 500 on, after which a call is tried again."""


class Silent:
    """The `Reporter` of `runtime/checkpoint.py` that nobody hears."""

    def check(self) -> None: ...
    def phase(self, name: str) -> None: ...


class Reactions:
    """What is under way because of alarms.  From any thread; nothing here waits but `close`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._acting: set[tuple[str, str]] = set()
        """Rule and container."""
        self._hooks: dict[tuple[str, str], Sink[bytes]] = {}
        """Rule and address → what waits for it."""

    def begin(self, rule: Rule, record: ContainerRecord, *, event: Event) -> None:
        """Do what a rule says; if that cannot be begun the log says so.  event: redacted."""
        try:
            match rule.action:
                case RuleAction.LOG:
                    pass
                case RuleAction.WEBHOOK:
                    self._hook(rule).offer(_message(rule, record, event))
                case RuleAction.PAUSE | RuleAction.CHECKPOINT | RuleAction.KILL:
                    self._begin_act(rule, record)
        except OSError as error:  # there may be no more threads
            _log_failure(rule, record, error)

    def _hook(self, rule: Rule) -> Sink[bytes]:
        with self._lock:
            key = (rule.name, rule.url)
            if key not in self._hooks:
                self._hooks[key] = Sink(
                    f"webhook {rule.name}",
                    Webhook(rule),
                    max_waiting=MAX_WAITING,
                    max_per_s=CALLS_PER_S,
                    linger_s=0.0,
                )
            return self._hooks[key]

    def _begin_act(self, rule: Rule, record: ContainerRecord) -> None:
        key = (rule.name, record.id)
        with self._lock:
            if key in self._acting:
                return
            self._acting.add(key)
        thread = threading.Thread(
            target=self._act, args=(rule, record), name=f"rule {rule.name}", daemon=True
        )
        try:
            begin(thread)
        except OSError:
            self._end_act(rule, record)
            raise

    def _end_act(self, rule: Rule, record: ContainerRecord) -> None:
        with self._lock:
            self._acting.discard((rule.name, record.id))

    def _act(self, rule: Rule, record: ContainerRecord) -> None:
        try:
            self._carry_out(rule, record)
        except (InsulaError, OSError) as error:
            _log_failure(rule, record, error)
        finally:
            self._end_act(rule, record)

    def _carry_out(self, rule: Rule, record: ContainerRecord) -> None:
        grant = Grant(
            principal=Principal(name=f"rule {rule.name}", role=Role.ADMIN, uid=0),
            action=Action.CONTROL,
            tenant=record.tenant,
        )
        match rule.action:
            case RuleAction.PAUSE:
                pause(grant, self._runtime, record.id)
            case RuleAction.KILL:
                kill(grant, self._runtime, record.id, signal="KILL")
            case RuleAction.CHECKPOINT:
                at = time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
                wish = CheckpointWish(name=rule.name[: MAX_NAME - len(at)] + at)
                checkpoint(grant, self._runtime, record.id, wish=wish, reporter=Silent())
            case RuleAction.LOG | RuleAction.WEBHOOK:
                pass

    def keep(self, rules: Iterable[Rule]) -> None:
        """Call nobody any more for rules that are not among these; what waits is carried if that goes at once."""
        kept = {(rule.name, rule.url) for rule in rules}
        with self._lock:
            for key in self._hooks.keys() - kept:
                self._hooks.pop(key).begin_close()

    def counts(self) -> tuple[SinkCounts, ...]:
        """Return what became of the calls of webhooks."""
        with self._lock:
            return tuple(sink.counts for sink in self._hooks.values())

    def close(self) -> None:
        """Call nobody any more."""
        with self._lock:
            sinks = tuple(self._hooks.values())
        self.keep(())
        for sink in sinks:
            sink.wait_end()


def _log_failure(rule: Rule, record: ContainerRecord, error: Exception) -> None:
    fields = {"rule": rule.name, "container": record.name, "reason": str(error)}
    LOG.error("a rule could not act", extra={"fields": fields, "tenant": record.tenant})


def _message(rule: Rule, record: ContainerRecord, event: Event) -> bytes:
    alarm = {
        "rule": rule.name,
        "description": rule.description,
        "container": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "at": event.at,
        "event": in_words(event),
    }
    return json.dumps(alarm).encode()


class Webhook:
    """The `Carrier` of a rule's alarms: a POST each."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def carry(self, items: Sequence[bytes]) -> int:
        """Send alarms.  Returns: how many were refused.  Raises: Unavailable."""
        reasons: list[str] = []
        try:
            for number, item in enumerate(items):
                reasons += filter(None, [self._send(item, carried=number, refused=len(reasons))])
        finally:
            if reasons:
                fields = {"rule": self._rule.name, "alarms": len(reasons), "reason": reasons[-1]}
                LOG.error("a webhook refused alarms", extra={"fields": fields})
        return len(reasons)

    def _send(self, item: bytes, *, carried: int, refused: int) -> str:
        """Send one, after so many.  Returns: why it was refused; empty: it was not.  Raises: Unavailable."""
        request = urllib.request.Request(  # http or https: `monitor/rule_text.py` has looked
            self._rule.url, data=item, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_S):
                return ""
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _LATER and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return str(error)
                raise Unavailable(str(error), carried=carried, refused=refused) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(reason, carried=carried, refused=refused) from error

    def close(self) -> None:
        """Nothing is kept open."""

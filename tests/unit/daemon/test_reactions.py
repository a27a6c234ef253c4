# SPDX-License-Identifier: Apache-2.0
"""What follows alarms is bounded, tried again, and counted."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hosted import wait_until
from insula.daemon import reactions
from insula.daemon.reactions import MAX_WAITING, Reactions
from insula.export import sink as sinks
from insula.model.monitor import Event, EventKind
from insula.model.spec import CheckpointWish
from insula.monitor.rules import Rule, RuleAction
from insula.runtime.checkpoint import NAME
from records import container_record

RECORD = container_record()
NOBODY: Any = None


def event(number: int = 0) -> Event:
    return Event(
        at=float(number), container="c", name="web", kind=EventKind.EXEC, command="sh", path="/bin/sh"
    )


class Hook:
    """A server that answers as it is told, and keeps what it took."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        """The next ones; then 204."""
        self.taken: list[dict[str, Any]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.calls = 0
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alarm = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.calls += 1
                hook.may_answer.wait(30)
                status = hook.answers.pop(0) if hook.answers else 204
                if status == 204:
                    hook.taken.append(alarm)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.rule = Rule(
            name="shell",
            action=RuleAction.WEBHOOK,
            url=f"http://127.0.0.1:{self.server.server_port}/",
            quiet_s=0,
        )


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(sinks, "PAUSES_S", (0.01,))
    made = Hook()
    serving = threading.Thread(target=made.server.serve_forever, daemon=True)
    serving.start()
    yield made
    made.may_answer.set()
    made.server.shutdown()
    made.server.server_close()
    serving.join()


@contextmanager
def reacting() -> Iterator[Reactions]:
    made = Reactions(NOBODY)
    yield made
    made.close()


def test_a_webhook_that_fails_is_called_again(hook: Hook) -> None:
    hook.answers = [503, 500, 429]
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event(7))
        wait_until(lambda: len(hook.taken) == 1, what="the alarm is taken")
        wait_until(lambda: begun.counts()[0].sent == 1, what="it is counted")
        (counts,) = begun.counts()
    assert (counts.sink, counts.failures, counts.refused) == ("webhook shell", 3, 0)
    assert (hook.taken[0]["rule"], hook.taken[0]["at"], hook.taken[0]["name"]) == ("shell", 7.0, "web")


def test_what_a_webhook_refuses_is_counted_and_logged(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.answers = [404]
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event())
        wait_until(lambda: begun.counts()[0].refused == 1, what="it is counted")
    assert hook.calls == 1
    assert "a webhook refused alarms" in caplog.messages


def test_what_is_refused_before_a_failure_is_not_counted_as_sent(hook: Hook) -> None:
    hook.may_answer.clear()
    hook.answers = [204, 400, 503, 204]
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event())
        wait_until(lambda: hook.calls == 1, what="the first call is under way")
        for number in (1, 2):  # these go as one batch
            begun.begin(hook.rule, RECORD, event=event(number))
        hook.may_answer.set()
        wait_until(lambda: len(hook.taken) == 2, what="the last is taken")
        wait_until(lambda: begun.counts()[0].waiting == 0, what="it is counted")
        (counts,) = begun.counts()
    assert (counts.sent, counts.refused, counts.failures) == (2, 1, 1)


def test_a_flood_of_alarms_waits_in_a_bounded_queue_and_one_thread(hook: Hook) -> None:
    hook.may_answer.clear()
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event())
        wait_until(lambda: hook.calls == 1, what="the first call is under way")
        before = threading.active_count()
        for number in range(3 * MAX_WAITING):
            begun.begin(hook.rule, RECORD, event=event(number))
        assert threading.active_count() == before
        (counts,) = begun.counts()
        assert (counts.dropped, counts.waiting) == (2 * MAX_WAITING, MAX_WAITING + 1)
        hook.may_answer.set()


def test_a_rule_that_counts_no_more_calls_nobody(hook: Hook) -> None:
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event())
        wait_until(lambda: len(hook.taken) == 1, what="the alarm is taken")
        begun.keep([hook.rule])
        assert len(begun.counts()) == 1
        begun.keep([])
        assert begun.counts() == ()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have no thread begin any more, as at a limit of them, until this is undone."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch


def test_a_rule_that_could_not_begin_to_act_says_so_and_acts_at_the_next_alarm(
    no_threads: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paused: list[str] = []
    rule = Rule(name="stop", action=RuleAction.PAUSE, quiet_s=0)
    with reacting() as begun:
        begun.begin(rule, RECORD, event=event())
        assert caplog.messages == ["a rule could not act"]
        no_threads.undo()
        no_threads.setattr(reactions, "pause", lambda *_: paused.append("paused"))
        begun.begin(rule, RECORD, event=event())
        wait_until(lambda: bool(paused), what="it acts")


def test_a_webhook_that_could_not_begin_says_so_and_is_called_at_the_next_alarm(
    hook: Hook, no_threads: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with reacting() as begun:
        begun.begin(hook.rule, RECORD, event=event(1))
        assert caplog.messages == ["a rule could not act"]
        no_threads.undo()
        begun.begin(hook.rule, RECORD, event=event(2))
        wait_until(lambda: len(hook.taken) == 1, what="the alarm is taken")
    assert hook.taken[0]["at"] == 2.0


def test_a_container_is_stopped_once_however_many_alarms_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_pauses: list[str] = []
    may_end = threading.Event()

    def slow(_grant: object, _runtime: object, container: str) -> None:
        begun_pauses.append(container)
        may_end.wait(30)

    monkeypatch.setattr(reactions, "pause", slow)
    rule = Rule(name="stop", action=RuleAction.PAUSE, quiet_s=0)
    with reacting() as begun:
        before = threading.active_count()
        for _ in range(100):
            begun.begin(rule, RECORD, event=event())
        begun.begin(rule, container_record(id="b" * 64), event=event())
        assert threading.active_count() <= before + 2
        wait_until(lambda: len(begun_pauses) == 2, what="each is paused")
        may_end.set()
        wait_until(lambda: not begun._acting, what="both have ended")
        begun.begin(rule, RECORD, event=event())
        wait_until(lambda: len(begun_pauses) == 3, what="it acts again")


@pytest.mark.parametrize("rule", ["shell", "a" * 63])
def test_a_checkpoint_has_a_name_that_one_can_have(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    made: list[str] = []

    def keep(*_: object, wish: CheckpointWish, **__: object) -> None:
        made.append(wish.name)

    monkeypatch.setattr(reactions, "checkpoint", keep)
    with reacting() as begun:
        begun.begin(Rule(name=rule, action=RuleAction.CHECKPOINT), RECORD, event=event())
        wait_until(lambda: bool(made), what="it is kept")
    assert NAME.fullmatch(made[0])
    assert made[0].startswith(rule[:47])

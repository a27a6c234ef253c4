# SPDX-License-Identifier: Apache-2.0
"""Rules at work: an alarm is told, and followed by what its rule says."""

import http.server
import json
import os
import queue
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hosted import Host, Running, wait_until
from told import listening
from waiting import DEADLINE_S

SHELL = '[[rule]]\nname = "shell"\nkinds = ["exec"]\npaths = ["/bin/id", "/usr/bin/id"]\n'


@contextmanager
def ruled(host: Host, text: str) -> Iterator[Path]:
    """Let rules count while the block runs."""
    file = host.folder / "rules.d" / "test.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    host.root("rule", "reload")
    try:
        yield file
    finally:
        file.unlink()
        host.root("rule", "reload")


def provoke(host: Host) -> None:
    host.root.give("exec", "web", "id")


@pytest.fixture
def web(host: Host) -> Host:
    host.root("run", "-d", "--name", "web", "box", "sleep", "1000")
    return host


def test_an_alarm_is_told_once_in_a_while(web: Host) -> None:
    with ruled(web, SHELL), listening(web.root) as events:
        provoke(web)
        told = events.read(1)
        provoke(web)
        web.root("rename", "web", "other")
        told += events.read(1)
        web.root("rename", "other", "web")
    assert [event for _, event, _ in told] == ["alarm", "renamed"]
    assert told[0][2].startswith("shell: id[")
    wait_for_log(web, " alarm ")


def test_a_rule_pauses(web: Host) -> None:
    with ruled(web, SHELL + 'action = "pause"\n'), web.root.begin("exec", "web", "id") as running:
        web.root.wait_for("web", status="paused")
        web.root("unpause", "web")
        running.communicate(timeout=DEADLINE_S)


def test_a_rule_kills(web: Host) -> None:
    with ruled(web, SHELL + 'action = "kill"\n'):
        provoke(web)
        assert web.root.wait_for("web", status="exited")["exit_code"] == 137


def test_a_rule_keeps_the_evidence(web: Host) -> None:
    text = '[[rule]]\nname = "evidence"\nkinds = ["file"]\npaths = ["/tmp/evil"]\nis_writing = true\naction = "checkpoint"\n'
    with ruled(web, text):
        web.root.give("exec", "web", "touch", "/tmp/evil")
        web.root.wait_for("web", status="exited")
        (kept,) = web.root.json("checkpoint", "ls", "--format", "json", "web")
        assert kept["name"].startswith("evidence-")
    web.root("restore", "web")
    assert web.root.wait_for("web", status="running")
    assert "evil" in web.root("exec", "web", "ls", "/tmp")


def test_a_rule_without_kinds_takes_nothing_from_the_others(web: Host) -> None:
    text = '[[rule]]\nname = "shot"\nkinds = ["signal"]\n[[rule]]\nname = "tracing"\ncalls = ["ptrace"]\n'
    with ruled(web, text), listening(web.root) as events:
        web.root.give("exec", "web", "sh", "-c", "kill -USR1 $$")
        ((_, event, detail),) = events.read(1)
    assert (event, detail.split(":")[0]) == ("alarm", "shot")


def test_what_is_doubtful_is_said_and_taken(web: Host, tmp_path: Path) -> None:
    file = tmp_path / "doubtful.toml"
    file.write_text(SHELL.replace('"/bin/id"', '"bin/id"'))
    done = web.root.give("rule", "check", str(file))
    assert (done.code, done.out) == (0, f"{file}: right; only what happens in containers costs something\n")
    assert "warning: rule `shell`: `bin/id` begins with no `/`" in done.err


def test_a_rule_sees_the_first_program_of_a_container(host: Host) -> None:
    with ruled(host, SHELL), listening(host.root) as events:
        host.root("run", "--name", "short", "box", "id")
        told = events.read(4)  # created, started, exited; an alarm comes when it has been looked at
    assert "alarm" in {event for _, event, _ in told}


def test_a_rule_misses_no_attempt_that_the_filter_answers_while_a_trace_asks_for_those(web: Host) -> None:
    text = '[[rule]]\nname = "mounts"\nkinds = ["mount"]\n'
    with ruled(web, text), web.root.begin("trace", "web") as trace, listening(web.root) as events:
        wait_until(lambda: is_told(web, trace), what="the trace is attached")
        web.root.give("exec", "web", "mount", "-t", "tmpfs", "x", "/tmp")
        ((_, event, detail),) = events.read(1)
        trace.terminate()
    assert (event, detail.split(":")[0]) == ("alarm", "mounts")


def is_told(host: Host, trace: Running) -> bool:
    """Have something happen, and tell whether a trace has told anything yet."""
    assert trace.stdout is not None
    host.root.give("exec", "web", "true")
    return bool(select.select([trace.stdout], [], [], 0)[0])


def test_a_webhook_is_called(web: Host) -> None:
    heard: queue.Queue[dict[str, str]] = queue.Queue()

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with web.entered():
        server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        with ruled(web, SHELL + f'action = "webhook"\nurl = "{url}"\n'):
            provoke(web)
            alarm = heard.get(timeout=DEADLINE_S)
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    assert (alarm["rule"], alarm["name"]) == ("shell", "web")


def test_a_wrong_rule_is_refused_and_the_old_ones_stay(web: Host, tmp_path: Path) -> None:
    with ruled(web, SHELL) as file:
        file.write_text('[[rule]]\nname = "x"\nkinds = ["bogus"]\n')
        said = web.root.fails("rule", "reload")
        assert "line 3" in said
        assert "kinds" in said
        assert [rule["name"] for rule in web.root.json("rule", "ls", "--format", "json")] == ["shell"]
        refusal = web.root.fails("rule", "check", str(file))
        assert "line 3" in refusal
        assert str(file) in refusal
        assert web.daemon is not None
        os.kill(web.daemon.pid, signal.SIGHUP)
        assert "rules stay as they were" in wait_for_log(web, "rules stay as they were")
        file.write_text(SHELL)


def wait_for_log(host: Host, words: str) -> str:
    wait_until(lambda: words in host.log(), what=lambda: host.log()[-500:])
    return host.log()


def test_others_than_admins_see_no_rules(web: Host) -> None:
    assert "needs the right" in web.alice.fails("rule", "ls")

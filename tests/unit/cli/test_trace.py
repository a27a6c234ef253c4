# SPDX-License-Identifier: Apache-2.0
"""`insula trace` asks for what is meant, and `insula top` for all that a person can follow."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.commands.trace import text_of
from insula.cli.main import main
from insula.cli.top.detail import EVENT_KINDS
from insula.model.monitor import EventKind


def test_an_option_that_is_given_several_times_is_said_several_times(tmp_path: Path) -> None:
    words = ("-p", "/tmp/a,b*", "-p", "/etc", "--pid", "7", "--command", "nginx*", "-k", "file")
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/web/trace"] = (200, {}, b"")
        assert main(["-H", double.host, "trace", *words, "web"]) == 0
    (seen,) = double.seen
    said = seen.target.partition("?")[2].split("&")
    assert said == ["kinds=file", "pids=7", "commands=nginx%2A", "paths=%2Ftmp%2Fa%2Cb%2A", "paths=%2Fetc"]


def test_a_path_that_was_cut_is_shown_so() -> None:
    event = {
        "at": 0,
        "kind": "file",
        "call": "openat",
        "command": "sh",
        "pid": 7,
        "path": "/etc/./.",
        "result": 3,
    }
    assert text_of(event | {"is_cut": True}).endswith("openat /etc/./. (path cut) = 3")
    assert text_of(event).endswith("openat /etc/./. = 3")


def test_top_shows_every_kind_but_those_that_are_too_many() -> None:
    assert set(EventKind) - set(EVENT_KINDS.split(",")) == {EventKind.FILE, EventKind.FORK}

# SPDX-License-Identifier: Apache-2.0
"""A profile in the making: what a program does stands in it, and nothing else."""

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insula.kernel.cgroup import Group, Hierarchies, delete_parent
from insula.model.errors import Unsupported
from insula.monitor.collect import Collector
from insula.monitor.recording import Recording
from insula.monitor.subscription import Subject
from waiting import DEADLINE_S


@pytest.fixture
def subject() -> Iterator[Subject]:
    hierarchies = Hierarchies.detect()
    parent = f"insula-test-{uuid.uuid4().hex[:8]}"
    group = Group(hierarchies, parent, "one")
    group.create()
    yield Subject("id", "one", group, group.v2_id(), 0, 65536)
    group.kill()
    group.delete(time.monotonic() + DEADLINE_S)
    delete_parent(hierarchies, parent)


@contextmanager
def recording(subject: Subject, *, is_from_birth: bool = False) -> Iterator[Recording]:
    collector = Collector()
    made = Recording(collector, subject, is_from_birth=is_from_birth)
    try:
        yield made
    finally:
        made.close()
        collector.close()


def python(subject: Subject, text: str) -> None:
    subprocess.run(
        [sys.executable, "-SIc", text],
        preexec_fn=lambda: subject.group.attach(os.getpid()),
        check=True,
        timeout=DEADLINE_S,
    )


def test_what_a_program_does_stands_in_the_profile(subject: Subject, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, recording(subject) as made:
        port = server.getsockname()[1]
        python(subject, f"""
import os, socket
open({str(tmp_path / "new")!r}, "w").close()
os.rename({str(tmp_path / "new")!r}, {str(tmp_path / "old")!r})
open("/etc/passwd").close()
socket.create_connection(("127.0.0.1", {port})).close()
socket.create_server(("127.0.0.1", 0)).close()
os.setgid(0)
""")  # fmt: skip
        profile = made.profile("web")
    assert profile.written[str(tmp_path)] == 2  # opened, renamed
    assert "/etc" not in profile.written
    assert profile.outgoing == {f"127.0.0.1:{port}/tcp": 1}
    assert list(profile.listening) == ["127.0.0.1:0/tcp"]
    assert {"execve", "rename", "connect", "bind", "setgid"} <= profile.calls.keys()
    assert "ptrace" not in profile.calls
    assert (profile.name, profile.container, profile.lost_events) == ("web", "one", 0)


def test_what_was_counted_before_is_not_in_it(subject: Subject) -> None:
    with recording(subject) as first:
        python(subject, "import os; os.getpgid(0)")
        assert first.profile("a").calls["getpgid"] == 1
        later = Recording(first._collector, subject, is_from_birth=False)
        python(subject, "pass")
        assert "getpgid" not in later.profile("b").calls
        later.close()


def test_what_happens_before_the_filter_is_left_out(subject: Subject) -> None:
    """As with a container: its ids and mounts are made before its seccomp filter is there."""
    with recording(subject._replace(is_confined=True), is_from_birth=True) as made:
        python(subject, """
import ctypes, os, struct
os.getpgid(0)
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(1, struct.pack("=HBBI", 6, 0, 0, 0x7fff0000)))) == 0
os.getsid(0)
""")  # fmt: skip
        profile = made.profile("web")
    assert "getsid" in profile.calls
    assert "getpgid" not in profile.calls
    assert profile.is_from_birth


def test_it_can_be_read_after_the_end(subject: Subject) -> None:
    with recording(subject) as made:
        python(subject, "import os; os.getpgid(0)")
        subject.group.delete(time.monotonic() + DEADLINE_S)
        profile = made.profile("web")
    subject.group.create()  # for the fixture, which takes it away
    assert profile.calls["getpgid"] == 1


def test_folders_of_sockets_and_of_what_was_not_there_are_written(subject: Subject, tmp_path: Path) -> None:
    """Who removes what is not there hears ENOENT; in a read-only file system it would be EROFS."""
    (tmp_path / "sockets").mkdir()
    (tmp_path / "missing").mkdir()
    (tmp_path / "from").mkdir()
    with recording(subject) as made:
        python(subject, f"""
import contextlib, os, socket
os.chdir({str(tmp_path)!r})
socket.socket(socket.AF_UNIX).bind({str(tmp_path / "sockets/s")!r})
with contextlib.suppress(FileNotFoundError):
    os.unlink("missing/one")
open("from/x", "w").close()
os.rename("from/x", "y")
""")  # fmt: skip
        profile = made.profile("web")
    assert {
        str(tmp_path / "sockets"),
        str(tmp_path / "missing"),
        str(tmp_path / "from"),
    } <= profile.written.keys()
    assert str(tmp_path) in profile.written


def test_answers_to_datagrams_are_not_connections(subject: Subject) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    with recording(subject) as made:
        python(subject, f"""
import socket
server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
server.bind(("127.0.0.1", {port}))
client.bind(("127.0.0.2", 0))
client.sendto(b"?", server.getsockname())
server.recvfrom(10)
server.sendto(b"!", client.getsockname())
""")  # fmt: skip
        profile = made.profile("web")
    assert set(profile.listening) == {"127.0.0.2:0/udp", f"127.0.0.1:{port}/udp"}
    assert profile.outgoing == {f"127.0.0.1:{port}/udp": 1}


def test_where_no_more_threads_may_be_nothing_is_recorded_and_nothing_watched(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "recording":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    collector = Collector()
    try:
        with pytest.raises(Unsupported, match="can't start new thread") as caught:
            Recording(collector, subject, is_from_birth=False)
        assert "ulimit -u" in caught.value.hint
        assert not collector.is_counting
        assert collector.watchers(subject.container) == []
    finally:
        collector.close()

# SPDX-License-Identifier: Apache-2.0
"""`insula top` as a person sees it: in a terminal of 80 columns, on a real host."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import hosted
from accounts import AccountsHost

ROWS, COLUMNS = 24, 80
BUSY = "while :; do cat /none/at/all 2>/dev/null; : > /tmp/x; done"
_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[P\]_^][^\x1b\x07]*(\x1b\\|\x07)|[=>])")


HOST_KIND = AccountsHost


class Screen:
    """A terminal, within the host's network, with `insula top` in it."""

    def __init__(self, host: hosted.Host, *, address: str, environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/proc/{os.getpid()}/fd/{host.network}", "--",
             sys.executable, "-m", "insula.cli", "-H", address, "top"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(hosted.SOURCE), "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(hosted.DEADLINE_S)
        os.close(self._ours)

    def press(self, keys: str) -> None:
        """Type, and forget what was on the screen before."""
        self.seen = b""
        os.write(self._ours, keys.encode())

    def read_until(self, *words: str) -> str:
        """Read until all the words have come."""
        end = time.monotonic() + hosted.DEADLINE_S
        while missing := [word for word in words if word not in self.text]:
            is_over = time.monotonic() > end or self.process.poll() is not None
            assert not is_over, f"not shown: {missing}; {self.text[-3000:]}"
            self._read()
        return self.text

    def _read(self) -> bool:
        """Read what is there, or comes in a moment; False at the end."""
        if select.select([self._ours], [], [], 0.2)[0]:
            try:
                self.seen += os.read(self._ours, 65536)
            except OSError:  # EIO: nobody has it open any more
                self.process.wait(hosted.DEADLINE_S)
                return False
        return True

    @property
    def text(self) -> str:
        return _SEQUENCE.sub(b"", self.seen).decode("utf-8", "replace")

    def end(self) -> int:
        """Wait for its end, reading all that it still writes."""
        end = time.monotonic() + hosted.DEADLINE_S
        while self._read() and time.monotonic() < end:
            pass
        return self.process.wait(1)


@contextmanager
def screen(host: hosted.Host, *, address: str = "", **environment: str) -> Iterator[Screen]:
    made = Screen(host, address=address or f"unix://{host.socket_path}", environment=environment)
    try:
        yield made
    finally:
        made.close()


def counted(host: hosted.Host) -> bool:
    with host.root.asking("GET", "/metrics?tenant=*") as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return b"\ninsula_container_calls_total{" in answer


def test_the_screen_shows_what_runs_and_counts_only_meanwhile(host: hosted.Host) -> None:
    host.root("run", "-d", "--name", "busy", "box", "sh", "-c", BUSY)
    host.root("run", "-d", "--name", "quiet", "box", "sleep", "600")
    assert not counted(host)
    with screen(host) as shown:
        shown.read_until("solo: 2 containers", "busy", "quiet", "CALLS/s", "openat ENOENT")
        assert counted(host)
        shown.press("/qui\r")
        shown.read_until("1 container", "only `qui`")
        shown.press("\x1b")
        shown.read_until("2 containers")
        shown.press("\r")
        shown.read_until("busy", "EVENTS", "an hour ago", "ENOENT", "exec cat")
        shown.press("\x1b")
        shown.read_until("the underlined letter")
        shown.press("q")
        assert shown.end() == 0
        assert b"\x1b[?1049l" in shown.seen, "the terminal's own screen is not back"
    hosted.wait_until(lambda: not counted(host), what="nobody counts any more")


def test_it_works_from_another_machine(host: hosted.Host) -> None:
    assert isinstance(host, AccountsHost)
    host.alice("run", "-d", "--name", "hers", "box", "sleep", "600")
    host.bob("run", "-d", "--name", "his", "box", "sleep", "600")
    token = host.alice("token", "create")
    pin = host.root.json("host", "info", "--format", "json")["fingerprint"]
    with screen(host, address=host.address, INSULA_TOKEN=token, INSULA_PIN=pin) as shown:
        text = shown.read_until("solo: 1 container,", "hers", "calls   ")
        assert "his" not in text
        shown.press("q")
        assert shown.end() == 0


def test_without_a_terminal_it_says_what_to_do(host: hosted.Host) -> None:
    assert "no terminal" in host.root.fails("top", code=125)


def test_the_processes_of_one_are_listed_as_before(host: hosted.Host) -> None:
    host.root("run", "-d", "--name", "quiet", "box", "sleep", "600")
    assert "sleep 600" in host.root("top", "quiet")

# SPDX-License-Identifier: Apache-2.0
"""Stand in for a container's terminal or pipes: this process's stdin, stdout, stderr and signals ⇄ frames.

One `poll` loop, no threads.  Frames: `model/stream.py`.  The connection never blocks (else both sides could wait for
each other with full buffers); while too much of stdin is unsent, stdin is not read.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import ExitStack

from insula.client.http import Stream
from insula.client.terminal import DEFAULT_KEYS, DetachKeys, RawMode, is_terminal, parse_keys, size
from insula.model import stream as frames
from insula.model.errors import DaemonUnreachable, ProtocolError, from_code

MAX_UNSENT = 1 << 18
READ_SIZE = 64 << 10
STDIN, STDOUT, STDERR = 0, 1, 2

#: Forwarded to the program.  Not: KILL and STOP (nobody can), CHLD, PIPE, URG, WINCH, and the faults of this process.
FORWARDED = tuple(
    getattr(signal, f"SIG{name}") for name in "INT TERM HUP QUIT USR1 USR2 CONT ALRM VTALRM PROF IO".split()
)


class Options:
    """How to attach.

    tty: the container has a terminal.  stdin: forward ours.  sig_proxy: forward signals (without a terminal; with one the
    keys do it).  owns: the program was started for us: when our stdout is closed, it is told by SIGPIPE as in a shell.
    """

    def __init__(
        self,
        *,
        tty: bool = False,
        stdin: bool = False,
        sig_proxy: bool = True,
        owns: bool = False,
        detach_keys: str = DEFAULT_KEYS,
        name: str = "container",
    ) -> None:
        self.tty = tty
        self.stdin = stdin
        self.sig_proxy = sig_proxy
        self.owns = owns
        self.keys = parse_keys(detach_keys)
        self.name = name


class Outcome:
    """exit_code: the program's; None if the user detached."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code


def attach(stream: Stream, options: Options) -> Outcome:
    """Forward until the program ends or the user detaches; give the terminal and the signal handlers back.

    Raises: the InsulaError of an ERROR frame; DaemonUnreachable if the connection ends; BrokenPipeError if stdout is
    closed and the program is not ours.
    """
    with ExitStack() as stack:
        stack.callback(stream.close)
        signals = stack.enter_context(_Signals(options))
        if options.tty and options.stdin and is_terminal(STDIN):
            stack.enter_context(RawMode(STDIN))
        return _Session(stream, options, signals=signals).run()


class _Signals:
    """Signals as readable bytes: Python writes each number into a pipe."""

    def __init__(self, options: Options) -> None:
        self._wanted = [
            *(FORWARDED if options.sig_proxy else ()),
            *((signal.SIGWINCH,) if options.tty else ()),
        ]

    def __enter__(self) -> _Signals:
        self.fd, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = [(number, signal.signal(number, lambda *_: None)) for number in self._wanted]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._write)

    def take(self) -> list[int]:
        """Return those that came and are forwarded: others (SIGTSTP, …) keep their meaning."""
        try:
            return [number for number in os.read(self.fd, 512) if number in self._wanted]
        except BlockingIOError:
            return []


class _Session:
    def __init__(self, stream: Stream, options: Options, *, signals: _Signals) -> None:
        self._connection = stream.connection
        self._connection.setblocking(False)
        self._options = options
        self._signals = signals
        self._reader = frames.FrameReader()
        self._first = stream.first
        self._unsent = bytearray()
        self._keys = DetachKeys(options.keys if options.tty and is_terminal(STDIN) else b"")
        self._reads_stdin = options.stdin
        self._outcome: Outcome | None = None
        self._closed_outputs: set[int] = set()

    def run(self) -> Outcome:
        if self._options.tty:
            self._send_size()
        self._receive(self._first)
        while self._outcome is None:
            ready = self._wait()
            if self._signals.fd in ready:
                self._forward_signals()
            if STDIN in ready and self._reads_stdin:
                self._forward_stdin()
            self._flush()
            if self._connection.fileno() in ready:
                self._read_connection()
        return self._outcome

    def _wait(self) -> set[int]:
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if self._reads_stdin and len(self._unsent) < MAX_UNSENT:
            poll.register(STDIN, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _send(self, kind: int, payload: bytes = b"") -> None:
        self._unsent += frames.frame(kind, payload)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # reading tells how it ended
            self._reads_stdin = False

    def _send_size(self) -> None:
        rows, columns = size(STDIN if is_terminal(STDIN) else STDOUT)
        if rows and columns:
            self._send(frames.RESIZE, frames.SIZE.pack(rows, columns))

    def _forward_signals(self) -> None:
        for number in self._signals.take():
            if number == signal.SIGWINCH:
                self._send_size()
            else:
                self._send(frames.SIGNAL, bytes([number]))

    def _forward_stdin(self) -> None:
        try:
            typed = os.read(STDIN, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            typed = b""  # closed, or a terminal that is gone
        if not typed:
            self._send(frames.STDIN)
            self._reads_stdin = False
            return
        forward, detached = self._keys.feed(typed)
        if forward:
            self._send(frames.STDIN, forward)
        if detached:
            self._send(frames.DETACH)
            self._outcome = Outcome(None)

    def _read_connection(self) -> None:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data and self._outcome is None:
            name = self._options.name
            raise DaemonUnreachable(
                f"lost the connection to `{name}`",
                hint=f"see whether it runs with `insula ps`, then `insula attach {name}`",
            )
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        try:
            for kind, payload in self._reader.feed(data):
                self._handle(kind, payload)
        except ValueError as error:
            raise ProtocolError(f"cannot read the stream of `{self._options.name}`: {error}") from None

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind in (frames.STDOUT, frames.STDERR):
            self._print(STDOUT if kind == frames.STDOUT else STDERR, payload)
        elif kind == frames.EXIT:
            self._outcome = Outcome(int(json.loads(payload)["exit_code"]))
        elif kind == frames.ERROR:
            error = json.loads(payload)
            raise from_code(str(error["code"]), str(error["message"]), hint=str(error.get("hint", "")))

    def _print(self, fd: int, data: bytes) -> None:
        if fd in self._closed_outputs:
            return
        try:
            write_all(fd, data)
        except BrokenPipeError:
            if not self._options.owns:
                raise
            self._closed_outputs.add(fd)
            self._send(frames.SIGNAL, bytes([signal.SIGPIPE]))


def write_all(fd: int, data: bytes) -> None:
    """Write everything, also into a pipe that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()

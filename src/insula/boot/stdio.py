# SPDX-License-Identifier: Apache-2.0
"""Standard input and output of containers: pipes and terminals, the log, and whoever is attached.

The spawner holds the outer ends, so that output is kept while insulad is away.  What a program writes goes to the log
and to every attached connection as frames (`model/stream.py`).  An attached reader that is slow holds the program back
like a full pipe does, after BACKLOG_BYTES; a log is turned over at LOG_BYTES, so that nothing grows without limit.
Who writes faster into it than LOG_RATE waits as well, unless somebody is attached: copying is this process's work, and
this process is everybody's.

A log file is a sequence of records `>dBxxxI` (UTC seconds, stream, length) and their bytes.  Standard library only.
"""

import contextlib
import os
import selectors
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Protocol

from insula.model import stream

RECORD = struct.Struct(">dBxxxI")
LOG_BYTES = 10 << 20
LOG_RATE, LOG_BURST = 16 << 20, 32 << 20
"""Bytes a second of one program's log, and how much may come at once: more than is kept."""
BACKLOG_BYTES = 1 << 20
STDIN_BACKLOG_BYTES = 256 << 10
READ_BYTES = 65536
LAST_BYTES = 1 << 20
"""What a pipe holds at most (pipe(7), pipe-max-size): so much may be in it when its program ends."""


class Log:
    """The log of one container: `path`, and `path`.1 before it."""

    def __init__(self, path: str, *, kept_bytes: int = 0) -> None:
        """kept_bytes: how much is kept, the older half included; 0: the usual."""
        self._path = path
        self._half_bytes = kept_bytes // 2 or LOG_BYTES
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, kind: int, data: bytes) -> None:
        """Append one record.  A full disk loses output, never the container."""
        if len(data) > self._half_bytes:
            data = data[-self._half_bytes :]
        try:
            written = os.writev(self._file, [RECORD.pack(time.time(), kind, len(data)), data])
            if written < RECORD.size + len(data):
                os.ftruncate(self._file, self._size)  # half a record would hide all that follow
                return
            self._size += written
            if self._size > self._half_bytes:
                self._turn_over()
        except OSError:
            return

    def _turn_over(self) -> None:
        # The new one is open before the old one is closed: a closed number is soon somebody else's.
        old = self._file
        with contextlib.suppress(FileNotFoundError):  # it was renamed when no new one could be made
            os.replace(self._path, self._path + ".1")
        self._open()
        os.close(old)

    def close(self) -> None:
        os.close(self._file)


def _signal_nobody(_number: int) -> None:
    return


class Loop(Protocol):
    """What the spawner's loop offers: watch a descriptor, replace what is watched, forget it."""

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None: ...
    def unwatch(self, descriptor: int) -> None: ...
    def call_at(self, deadline: float, callback: Callable[[], None]) -> object: ...


def _watch(loop: Loop, descriptor: int, *, events: int, callback: Callable[[int], None]) -> None:
    if events:
        loop.watch(descriptor, events, callback)
    else:
        loop.unwatch(descriptor)


class Attached:
    """One connection that sees the output and may write the input."""

    def __init__(self, owner: "Stdio", connection: socket.socket, *, with_stdin: bool) -> None:
        self._owner = owner
        self._connection = connection
        self._with_stdin = with_stdin
        self._frames = stream.FrameReader()
        self._backlog = bytearray()
        self._closing = False
        connection.setblocking(False)
        self.watch()

    @property
    def backlog(self) -> int:
        return len(self._backlog)

    @property
    def inode(self) -> int:
        """By which insulad knows the connection."""
        return os.fstat(self._connection.fileno()).st_ino

    def push(self, data: bytes) -> None:
        """Send bytes, as far as the reader takes them; the rest waits."""
        self._backlog += data
        self._flush()

    def finish(self, data: bytes) -> None:
        """Send the last bytes and close as soon as they are gone."""
        self._closing = True
        self.push(data)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self in self._owner.attached:
            self._read()

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        try:
            for kind, payload in self._frames.feed(data):
                self._handle(kind, payload)
        except ValueError:
            self.drop()

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == stream.STDIN and self._with_stdin:
            self._owner.write_input(payload)
        elif kind == stream.RESIZE and len(payload) == stream.SIZE.size:
            rows, columns = stream.SIZE.unpack(payload)
            self._owner.resize(rows, columns=columns)
        elif kind == stream.SIGNAL and len(payload) == 1:
            self._owner.signal(payload[0])
        elif kind == stream.DETACH:
            self.drop()

    def _flush(self) -> None:
        try:
            while self._backlog:
                sent = self._connection.send(self._backlog[:READ_BYTES])
                del self._backlog[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.drop()
            return
        if not self._backlog and self._closing:
            self.drop()
            return
        self.watch()
        self._owner.update_pressure()

    def watch(self) -> None:
        """Wait for what can be handled now: no input while the program has not taken the last."""
        is_read = not (self._with_stdin and self._owner.is_input_full)
        events = (selectors.EVENT_READ if is_read else 0) | (selectors.EVENT_WRITE if self._backlog else 0)
        _watch(self._owner.loop, self._connection.fileno(), events=events, callback=self._ready)

    def drop(self) -> None:
        """Close the connection; the program goes on."""
        if self in self._owner.attached:
            self._owner.attached.remove(self)
        if self._connection.fileno() >= 0:
            self._owner.loop.unwatch(self._connection.fileno())
            self._connection.close()
        self._owner.update_pressure()


class Stdio:
    """The outer ends of one program's standard streams."""

    def __init__(self, loop: Loop, *, log: Log | None, signal: Callable[[int], None]) -> None:
        self.loop = loop
        self.attached: list[Attached] = []
        self.signal = signal
        self._log = log
        self._outputs: dict[int, int] = {}
        self._stdin = -1
        self._stdin_backlog = bytearray()
        self._stdin_ends = False
        self._terminal = -1
        self._held_back = False
        self._credit = float(LOG_BURST)
        """Bytes that may be written into the log now; below 0: somebody has to wait."""
        self._counted_at = time.monotonic()
        self._rests = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """stdin (or -1), then the outputs: what a checkpoint must know to replace on restore."""
        return (self._stdin, *self._outputs)

    @property
    def is_input_full(self) -> bool:
        return len(self._stdin_backlog) > STDIN_BACKLOG_BYTES

    def add_output(self, descriptor: int, kind: int) -> None:
        os.set_blocking(descriptor, False)
        self._outputs[descriptor] = kind
        self._watch_output(descriptor)

    def _watch_output(self, descriptor: int) -> None:
        def ready(_events: int) -> None:
            self._read(descriptor)

        self.loop.watch(descriptor, selectors.EVENT_READ, ready)

    def set_input(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._stdin = descriptor

    def set_terminal(self, master: int) -> None:
        """Use a terminal's master for both directions."""
        self._terminal = master
        self.add_output(master, stream.STDOUT)
        self._stdin = master

    def attach(self, connection: socket.socket, *, with_stdin: bool, first: bytes) -> None:
        """Let a connection see the output from now on; `first` goes before it."""
        each = Attached(self, connection, with_stdin=with_stdin)
        self.attached.append(each)
        self._go_on()
        if first:
            each.push(first)

    def resize(self, rows: int, *, columns: int) -> None:
        if self._terminal >= 0:
            termios.tcsetwinsize(self._terminal, (rows, columns))

    def write_input(self, data: bytes) -> None:
        """Pass input on; no bytes mean its end.  Input beyond the backlog's limit is not read before it is taken."""
        if self._stdin < 0:
            return
        if not data:
            self._stdin_ends = True
            if self._terminal >= 0:
                self._stdin_backlog += b"\x04"  # what a terminal's user types to end the input
        self._stdin_backlog += data
        self._flush_input(0)

    def _flush_input(self, _events: int) -> None:
        was_full = self.is_input_full
        self._write_backlog()
        if was_full or self.is_input_full:
            for each in self.attached:
                each.watch()

    def _write_backlog(self) -> None:
        try:
            while self._stdin_backlog:
                sent = os.write(self._stdin, self._stdin_backlog[:READ_BYTES])
                del self._stdin_backlog[:sent]
        except BlockingIOError:
            self._watch_input(waiting=True)
            return
        except OSError:
            self._stdin_backlog.clear()
        self._watch_input(waiting=False)
        if self._stdin_ends and self._terminal < 0:
            self._close_input()

    def _watch_input(self, *, waiting: bool) -> None:
        if self._terminal >= 0:
            events = (0 if self._held_back else selectors.EVENT_READ) | (
                selectors.EVENT_WRITE if waiting else 0
            )
            _watch(self.loop, self._terminal, events=events, callback=self._terminal_ready)
        elif waiting:
            self.loop.watch(self._stdin, selectors.EVENT_WRITE, self._flush_input)
        else:
            self.loop.unwatch(self._stdin)

    def _terminal_ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush_input(events)
        if events & selectors.EVENT_READ:
            self._read(self._terminal)

    def _close_input(self) -> None:
        if self._stdin >= 0:
            self.loop.unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _read(self, descriptor: int) -> int:
        """Read once.  Returns: how much; 0: there is no more."""
        kind = self._outputs.get(descriptor)
        if kind is None:
            return 0
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last slave of a terminal was closed
            data = b""
        if not data:
            self._close_output(descriptor)
            return 0
        if self._log is not None:
            self._log.write(kind, data)
            self._spend(len(data))
        frame = stream.frame(kind, data)
        for each in list(self.attached):
            each.push(frame)
        return len(data)

    def _close_output(self, descriptor: int) -> None:
        del self._outputs[descriptor]
        self.loop.unwatch(descriptor)
        if descriptor == self._stdin:
            self._stdin = -1
            self._terminal = -1
        os.close(descriptor)

    def _spend(self, count: int) -> None:
        """Count what went into the log; too much of it has the program wait."""
        now = time.monotonic()
        self._credit = min(LOG_BURST, self._credit + (now - self._counted_at) * LOG_RATE) - count
        self._counted_at = now
        if self._credit < 0 and not self.attached and not self._rests:
            self._rests = True
            self.loop.call_at(now - self._credit / LOG_RATE, self._go_on)
            self.update_pressure()

    def _go_on(self) -> None:
        self._rests = False
        self.update_pressure()

    def update_pressure(self) -> None:
        """Stop reading while an attached reader is far behind or the log is full, and go on when that is over."""
        behind = self._rests or any(each.backlog > BACKLOG_BYTES for each in self.attached)
        if behind == self._held_back:
            return
        self._held_back = behind
        for descriptor in self._outputs:
            if descriptor == self._terminal:
                self._watch_input(waiting=bool(self._stdin_backlog))
            elif behind:
                self.loop.unwatch(descriptor)
            else:
                self._watch_output(descriptor)

    def finish(self, last: bytes) -> None:
        """The program has ended: take what is still in the pipes, tell everybody attached, close."""
        # Its pidfd is closed: the number may be another program's by the time a slow reader sends a signal.
        self.signal = _signal_nobody
        for descriptor in list(self._outputs):
            # Others may still write, and faster than this reads.
            left = LAST_BYTES
            while left > 0 and (count := self._read(descriptor)):
                left -= count
        for descriptor in list(self._outputs):
            self._close_output(descriptor)
        self._close_input()
        for each in list(self.attached):
            each.finish(last)
        if self._log is not None:
            self._log.close()
            self._log = None


def make_pipes(*, uid: int, with_stdin: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Make the pipes of a program without a terminal, owned by `uid` so that it may reopen /dev/stdout.

    Returns: (inner stdin or -1, stdout, stderr), (outer stdin or -1, stdout, stderr).
    """
    with contextlib.ExitStack() as undo:
        out_read, out_write = _make_pipe(undo)
        err_read, err_write = _make_pipe(undo)
        in_read, in_write = _make_pipe(undo) if with_stdin else (-1, -1)
        for descriptor in (out_write, err_write, in_read):
            if descriptor >= 0:
                os.fchown(descriptor, uid, uid)
        undo.pop_all()
    return (in_read, out_write, err_write), (in_write, out_read, err_read)


def _make_pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for each in ends:
        undo.callback(os.close, each)
    return ends

# SPDX-License-Identifier: Apache-2.0
"""`insula run` and `attach` as processes, on pipes and on a real pty, against a server that speaks the frames."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from daemon_double import Double, Exchange, serve

from insula.client.terminal import DetachKeys, parse_keys
from insula.model import stream
from insula.model.errors import BadRequest
from waiting import DEADLINE_S

Program = Callable[[Iterator[tuple[int, bytes]], Callable[[int, bytes], None]], None]


def upgraded(program: Program) -> Callable[[Exchange], None]:
    def serve_frames(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: insula-stream\r\n\r\n")

        def send(kind: int, payload: bytes) -> None:
            exchange.writer.write(stream.frame(kind, payload))
            exchange.writer.flush()

        def received() -> Iterator[tuple[int, bytes]]:
            reader = stream.FrameReader()
            while data := exchange.reader.read1(65536):  # type: ignore[attr-defined]
                yield from reader.feed(data)

        program(received(), send)

    return serve_frames


def ended(code: int) -> bytes:
    return json.dumps({"exit_code": code}).encode()


def answers(double: Double, program: Program) -> None:
    double.answers["POST /v1/containers"] = (201, {}, {"id": "c1", "name": "web", "warnings": []})
    double.answers["POST /v1/containers/c1/attach"] = upgraded(program)
    double.answers["GET /v1/containers/c1/wait"] = (200, {}, {"exit_code": 0, "error": ""})


def start(double: Double, *words: str, **pipes: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "insula.cli", "-H", double.host, *words]
    source = str(Path(__file__).parents[3] / "src")
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source, "TERM": "xterm"}, **pipes)


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_stdin_reaches_the_program_and_output_and_exit_code_come_back(tmp_path: Path) -> None:
    def cat(frames: Iterator[tuple[int, bytes]], send: Callable[[int, bytes], None]) -> None:
        send(stream.HELLO, b'{"id": "c1"}')
        for kind, payload in frames:
            if kind == stream.STDIN and not payload:
                break
            send(stream.STDOUT, payload)
        send(stream.STDERR, b"bye\n")
        send(stream.EXIT, ended(7))

    data = os.urandom(3_000_000)
    with serve(tmp_path / "s") as double:
        answers(double, cat)
        process = start(double, "run", "-i", "--rm", "host", "cat", **PIPES)
        out, err = process.communicate(data, timeout=DEADLINE_S)
    assert (process.returncode, err) == (7, b"bye\n")
    assert out == data
    assert double.seen[-1].target.endswith("wait?condition=removed")


@pytest.mark.parametrize(
    ("code", "status"), [("command_not_found", 127), ("command_not_executable", 126), ("port_in_use", 125)]
)
def test_a_failed_start_gives_dockers_exit_codes(tmp_path: Path, code: str, status: int) -> None:
    def fail(frames: Iterator[tuple[int, bytes]], send: Callable[[int, bytes], None]) -> None:
        send(
            stream.ERROR,
            json.dumps({"code": code, "message": "cannot start `web`: why", "hint": "cure"}).encode(),
        )

    with serve(tmp_path / "s") as double:
        answers(double, fail)
        process = start(double, "run", "host", "x", **PIPES)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (status, b"insula: cannot start `web`: why\n  hint: cure\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_forwarded(tmp_path: Path, number: signal.Signals) -> None:
    def trap(frames: Iterator[tuple[int, bytes]], send: Callable[[int, bytes], None]) -> None:
        send(stream.STDOUT, b"ready\n")
        for kind, payload in frames:
            if kind == stream.SIGNAL:
                send(stream.EXIT, ended(128 + payload[0]))
                return

    with serve(tmp_path / "s") as double:
        answers(double, trap)
        process = start(double, "run", "host", "x", **PIPES)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + number


def test_a_program_whose_reader_is_gone_gets_sigpipe(tmp_path: Path) -> None:
    def yes(frames: Iterator[tuple[int, bytes]], send: Callable[[int, bytes], None]) -> None:
        send(stream.STDOUT, b"y\n")
        for kind, payload in frames:
            if kind == stream.STDIN:
                send(stream.STDOUT, b"y\n")
            if kind == stream.SIGNAL:
                send(stream.EXIT, ended(128 + payload[0]))
                return

    with serve(tmp_path / "s") as double:
        answers(double, yes)
        process = start(double, "run", "-i", "host", "yes", **PIPES)
        assert process.stdout is not None and process.stdin is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.wait(DEADLINE_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
        process.stdin.close()
        process.stderr.close()


def test_a_connection_that_ends_is_explained(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        answers(double, lambda frames, send: send(stream.STDOUT, b"x"))
        process = start(double, "run", "host", "x", **PIPES)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 125
    assert err.startswith(b"insula: lost the connection to `web`\n")


def read_until(fd: int, wanted: bytes) -> bytes:
    seen, deadline = b"", time.monotonic() + DEADLINE_S
    while wanted not in seen:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([fd], [], [], left)[0], f"no {wanted!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_a_terminal_is_raw_tells_its_size_and_is_given_back_after_the_detach_keys(tmp_path: Path) -> None:
    def shell(frames: Iterator[tuple[int, bytes]], send: Callable[[int, bytes], None]) -> None:
        for kind, payload in frames:
            if kind == stream.RESIZE:
                rows, columns = stream.SIZE.unpack(payload)
                send(stream.STDOUT, f"<{rows}x{columns}>".encode())
            elif kind == stream.STDIN:
                send(stream.STDOUT, b"[" + payload.hex().encode() + b"]")
            elif kind == stream.DETACH:
                return

    ours, theirs = pty.openpty()
    resize(theirs, 24, 80)
    before = termios.tcgetattr(theirs)
    try:
        with serve(tmp_path / "s") as double:
            answers(double, shell)
            process = start(double, "run", "-it", "host", "sh", stdin=theirs, stdout=theirs, stderr=theirs)
            read_until(ours, b"<24x80>")
            os.write(ours, b"\x03")  # ctrl-c is the program's, not ours
            read_until(ours, b"[03]")
            resize(theirs, 30, 100)
            process.send_signal(signal.SIGWINCH)
            read_until(ours, b"<30x100>")
            os.write(ours, b"\x10\x10\x11")
            read_until(ours, b"left `web` running")
            assert process.wait(DEADLINE_S) == 0
        assert termios.tcgetattr(theirs) == before
        assert "rows=24&columns=80" in double.seen[1].target
        assert b'"tty": true' in double.seen[0].body
    finally:
        os.close(ours)
        os.close(theirs)


def test_detach_keys_are_read() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("a,ctrl-[") == b"a\x1b"
    assert parse_keys("") == b""
    with pytest.raises(BadRequest, match="ctrl-pp"):
        parse_keys("ctrl-pp")


@given(
    st.lists(st.text("pqx", max_size=4).map(str.encode), max_size=6),
    st.sampled_from([b"pq", b"ppq", b"pqpx"]),
)
def test_detach_keys_lose_no_byte_wherever_reads_are_cut(parts: list[bytes], keys: bytes) -> None:
    watcher, out, detached = DetachKeys(keys), b"", False
    for part in parts:
        forwarded, detached = watcher.feed(part)
        out += forwarded
        if detached:
            break
    typed = b"".join(parts)
    assert detached == (keys in typed)
    expected = typed.partition(keys)[0]
    assert out == expected if detached else expected.startswith(out) and keys.startswith(expected[len(out) :])

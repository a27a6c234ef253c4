# SPDX-License-Identifier: Apache-2.0
"""Standard input and output: the log, attached connections, terminals, slow readers and writers."""

import os
import signal
import struct
import time
from pathlib import Path

import pytest

from insula.boot import stdio
from insula.model import stream
from spawned import Attached, Spawned, Started, wait_until


def _attached(container: Started) -> Attached:
    assert container.attached is not None
    return container.attached


def test_streams_are_told_apart(host: Spawned) -> None:
    ended = host.run_shell("echo out; echo err >&2")
    assert (ended.out, ended.err) == ("out\n", "err\n")


def test_log_tells_when(host: Spawned) -> None:
    before = time.time()
    container = host.start("/bin/sh", "-c", "echo one; sleep 0.2; echo two")
    host.client.wait_exit(container.key)
    times = [when for when, _, _ in container.records()]
    assert before <= times[0] < times[1] <= time.time()
    assert Path(container.plan.log).stat().st_mode & 0o777 == 0o600


def test_last_words_are_not_lost(host: Spawned) -> None:
    ended = host.run_shell("seq 1 20000; echo last >&2")
    assert ended.out == "".join(f"{number}\n" for number in range(1, 20001))
    assert ended.err == "last\n"


def test_any_byte_is_kept(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", r"printf '\000\377\r\n\033[31m'")
    host.client.wait_exit(container.key)
    assert b"".join(data for _, _, data in container.records()) == b"\0\xff\r\n\x1b[31m"


def test_log_is_turned_over(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", f"yes | head -c {stdio.LOG_BYTES + (2 << 20)}")
    assert host.client.wait_exit(container.key) == 0
    assert Path(container.plan.log + ".1").stat().st_size <= stdio.LOG_BYTES + (1 << 20)
    assert Path(container.plan.log).stat().st_size < stdio.LOG_BYTES


def test_stdin_is_dev_null_unless_asked(host: Spawned) -> None:
    assert host.run_shell("readlink /proc/self/fd/0; cat").out == "/dev/null\n"


def test_stdin_and_its_end(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "wc -c; echo done", stdin_open=True, attach=True)
    attached = _attached(container)
    for _ in range(50):
        attached.type(b"x" * 10_000)
    attached.type(b"")
    assert attached.wait_exit() == 0
    assert attached.collected().split() == [b"500000", b"done"]


def test_preamble_and_hello_come_first(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "read line; echo $line", stdin_open=True)
    attached = host.attach(container, preamble="HTTP/1.1 101 X\r\n\r\n", hello='{"id": "1"}')
    expected = b"HTTP/1.1 101 X\r\n\r\n" + stream.frame(stream.HELLO, b'{"id": "1"}')
    assert attached.connection.recv(len(expected)) == expected
    attached.type(b"word\n")
    assert attached.wait_exit() == 0
    assert attached.collected() == b"word\n"


def test_two_see_the_same_and_both_may_type(host: Spawned) -> None:
    container = host.start("/bin/cat", stdin_open=True, attach=True)
    first, second = _attached(container), host.attach(container)
    first.type(b"one\n")
    second.read_until(b"one\n")
    second.type(b"two\n")
    assert first.read_until(b"two\n") == second.read_until(b"two\n") == b"one\ntwo\n"
    second.type(b"")
    assert (first.wait_exit(), second.wait_exit()) == (0, 0)


def test_a_reader_without_stdin_cannot_type(host: Spawned) -> None:
    container = host.start("/bin/cat", stdin_open=True, attach=True)
    reader = host.attach(container, stdin=False)
    reader.type(b"forbidden\n")
    reader.type(b"")
    _attached(container).type(b"allowed\n")
    assert reader.read_until(b"allowed\n") == b"allowed\n"


def test_detach_and_hanging_up_leave_the_program(host: Spawned) -> None:
    container = host.start("/bin/cat", stdin_open=True, attach=True)
    _attached(container).send(stream.DETACH)
    assert not _attached(container).read(), "the spawner closes"
    second = host.attach(container)
    second.type(b"still\n")
    second.read_until(b"still\n")
    second.close()
    third = host.attach(container)
    third.type(b"here\n")
    third.read_until(b"here\n")


def test_signal_frame_reaches_the_program(host: Spawned) -> None:
    script = "trap 'echo caught; exit 5' USR1; echo ready; while true; do sleep 0.05; done"
    attached = _attached(host.start("/bin/sh", "-c", script, attach=True))
    attached.read_until(b"ready")
    attached.send(stream.SIGNAL, bytes([signal.SIGUSR1]))
    assert attached.wait_exit() == 5
    assert attached.collected() == b"ready\ncaught\n"


def test_attach_after_the_end_tells_the_exit_code(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "exit 9")
    host.client.wait_exit(container.key)
    assert host.attach(container).wait_exit() == 9


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, struct.pack(">BxxxI", 0, 1 << 31), stream.frame(stream.RESIZE, b"x")]
)
def test_garbage_harms_nobody_else(host: Spawned, garbage: bytes) -> None:
    container = host.start("/bin/cat", stdin_open=True, attach=True)
    host.attach(container).connection.sendall(garbage)
    _attached(container).type(b"fine\n")
    _attached(container).read_until(b"fine\n")


def _resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))


def test_slow_reader_holds_the_program_back_and_bounds_memory(host: Spawned) -> None:
    before = _resident_kib(host.process.pid)
    container = host.start("/bin/sh", "-c", "dd if=/dev/zero bs=65536 count=800 2>/dev/null", attach=True)
    written = Path(container.plan.log)
    sizes = [-1]

    def has_stopped() -> bool:
        host.client.ask("hello")
        sizes.append(written.stat().st_size)
        return len(sizes) > 100 and sizes[-1] == sizes[-100] > 0

    wait_until(has_stopped, what="the program is held back")
    assert sizes[-1] < 16 << 20
    assert host.held()[container.key]["exit_code"] is None
    assert _resident_kib(host.process.pid) - before < 16 << 10
    assert _attached(container).wait_exit() == 0
    assert len(_attached(container).collected()) == 800 * 65536


def test_slow_reader_that_hangs_up_frees_the_program(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "dd if=/dev/zero bs=65536 count=800 2>/dev/null", attach=True)
    wait_until(lambda: Path(container.plan.log).stat().st_size > 1 << 20, what="the program writes")
    _attached(container).close()
    assert host.client.wait_exit(container.key) == 0


def test_input_that_nobody_reads_bounds_memory(host: Spawned) -> None:
    container = host.start("/bin/sleep", "1000", stdin_open=True, attach=True)
    attached = _attached(container)
    attached.connection.setblocking(False)
    before, sent = _resident_kib(host.process.pid), 0
    frame = stream.frame(stream.STDIN, b"x" * 65536)

    def is_refused() -> bool:
        nonlocal sent
        host.client.ask("hello")
        try:
            sent += attached.connection.send(frame[sent % len(frame) :])
        except BlockingIOError:
            return True
        return sent > 32 << 20

    wait_until(is_refused, what="no more input is taken")
    assert sent < 8 << 20
    assert _resident_kib(host.process.pid) - before < 8 << 10


def test_input_goes_on_when_it_is_read_again(host: Spawned) -> None:
    container = host.start(
        "/bin/sh", "-c", "echo ready; read line < /dev/stdin; wc -c", stdin_open=True, attach=True
    )
    attached = _attached(container)
    attached.read_until(b"ready")
    attached.type(b"go\n")
    for _ in range(40):
        attached.type(b"y" * 65536)
    attached.type(b"")
    assert attached.wait_exit() == 0
    assert int(attached.collected().split()[-1]) <= 40 * 65536


def test_terminal_has_the_size_asked_and_echoes(host: Spawned) -> None:
    container = host.start(
        "/bin/sh", "-c", "tty; stty size; read x; echo got-$x", tty=True, rows=33, columns=99, attach=True
    )
    attached = _attached(container)
    attached.read_until(b"33 99")
    assert b"/dev/pts/0" in attached.collected()
    attached.type(b"word\n")
    assert attached.wait_exit() == 0
    assert b"word\r\n" in attached.collected() and b"got-word\r\n" in attached.collected()


def test_terminal_is_resized(host: Spawned) -> None:
    script = "trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done"
    container = host.start("/bin/sh", "-c", script, tty=True, attach=True)
    attached = _attached(container)
    attached.read_until(b"ready")
    attached.send(stream.RESIZE, stream.SIZE.pack(41, 121))
    attached.read_until(b"41 121")
    host.client.ask("resize", key=container.key, rows=42, columns=122)
    attached.read_until(b"42 122")


def test_terminals_end_of_input_and_interrupt(host: Spawned) -> None:
    container = host.start("/bin/cat", tty=True, attach=True, init="/bin/tini")
    _attached(container).type(b"line\n")
    _attached(container).read_until(b"line\r\nline\r\n")
    _attached(container).type(b"")
    assert _attached(container).wait_exit() == 0
    script = "trap 'echo interrupted; exit 3' INT; echo ready; while true; do sleep 0.05; done"
    second = host.start("/bin/sh", "-c", script, tty=True, attach=True)
    _attached(second).read_until(b"ready")
    _attached(second).type(b"\x03")
    assert _attached(second).wait_exit() == 3
    assert b"interrupted" in _attached(second).collected()


def test_terminals_log_is_kept(host: Spawned) -> None:
    container = host.start("/bin/echo", "words", tty=True)
    host.client.wait_exit(container.key)
    assert container.logged() == "words\r\n"


def test_devices_stdout_can_be_opened_again(host: Spawned) -> None:
    assert host.run_shell("echo again > /dev/stdout; echo err > /dev/stderr", user="user").out == "again\n"


def test_program_that_closes_its_streams_goes_on(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "exec <&- >&- 2>&-; exec sleep 1000", attach=True)
    descriptors = Path(f"/proc/{container.pid}/fd")
    wait_until(lambda: not os.listdir(descriptors), what="all streams are closed")
    busy = _ticks(host.process.pid)
    for _ in range(20):
        host.client.ask("hello")
    assert _ticks(host.process.pid) - busy < 20, "the loop spins"
    assert host.end(container) == 137


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])

# SPDX-License-Identifier: Apache-2.0
"""A running program is written down and read again: every kind of state, with its connections, or it runs on."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from demo import cleanup
from msgspec.structs import replace

from insula.model.errors import CheckpointFailed, InsulaError
from insula.model.lifecycle import Status
from insula.runtime.store import Store
from two_hosts import Conversation, Counter, Pair, wait_until

#: Each makes some state in the program and names what must hold of it later, as expressions.
STATES = {
    "pipes between processes": (
        """
r1, w1 = os.pipe(); r2, w2 = os.pipe()
if os.fork() == 0:
    while data := os.read(r1, 64):
        os.write(w2, data.upper())
    os._exit(0)
os.write(w1, b"before")
""",
        """
first = os.read(r2, 6)
os.write(w1, b"after")
answer = first + os.read(r2, 5) == b"BEFOREAFTER"
""",
    ),
    "shared anonymous memory": (
        """
import mmap
shared = mmap.mmap(-1, 1 << 16)
pr, pw = os.pipe()
if os.fork() == 0:
    os.read(pr, 1); shared[:5] = b"child"; os._exit(0)
""",
        "os.write(pw, b'x'); os.wait(); answer = shared[:5] == b'child'",
    ),
    "memfd": (
        "m = os.memfd_create('m'); os.write(m, b'kept' * 5000)",
        "answer = os.pread(m, 20000, 0) == b'kept' * 5000",
    ),
    "System V memory": (
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 8192, 0o1600)
place = libc.shmat(segment, None, 0)
ctypes.memmove(place, b"system five", 11)
""",
        "answer = ctypes.string_at(place, 11) == b'system five' and libc.shmget(0, 4096, 0o1600) >= 0",
    ),
    "an unlinked open file": (
        "gone = open('/root/gone', 'w+b', 0) if os.path.isdir('/root') else open('/tmp/gone', 'w+b', 0)\n"
        "gone.write(b'unlinked'); os.unlink(gone.name)",
        "gone.seek(0); answer = gone.read() == b'unlinked'",
    ),
    "timers and a signal handler": (
        """
import time
ticks = 0
stop = threading.Event()
def tick():
    global ticks
    while not stop.wait(0.01): ticks += 1
threading.Thread(target=tick, daemon=True).start()
t = ctypes.CDLL(None).timerfd_create(1, 0o4000)
import struct
ctypes.CDLL(None).timerfd_settime(t, 0, struct.pack('4q', 0, 20_000_000, 0, 20_000_000), None)
""",
        """
import select
had = ticks
ready = select.select([t], [], [], 30)[0]
until = time.monotonic() + 30
while ticks == had and time.monotonic() < until: time.sleep(0.01)
answer = ready == [t] and ticks > had
""",
    ),
    "unix sockets": (
        """
a, b = socket.socketpair()
a.sendall(b"queued")
door = socket.socket(socket.AF_UNIX); door.bind("/tmp/door"); door.listen()
guest = socket.socket(socket.AF_UNIX); guest.connect("/tmp/door")
inside, _ = door.accept()
""",
        "guest.sendall(b'hi'); answer = b.recv(6) == b'queued' and inside.recv(2) == b'hi' and os.path.exists('/tmp/door')",
    ),
    "tmpfs, volume, and a deleted file of the image": (
        """
open('/scratch/t', 'w').write('tmpfs'); open('/data/v', 'w').write('volume')
os.unlink('/etc/hostname') if os.access('/etc/hostname', os.W_OK) and False else os.unlink('/etc/debian_version')
""",
        "answer = open('/scratch/t').read() == 'tmpfs' and open('/data/v').read() == 'volume'"
        " and not os.path.exists('/etc/debian_version')",
    ),
    "clocks that never go back": (
        "clocks = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()",
        "answer = all(x >= y for x, y in zip((time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()), clocks))"
        " and time.monotonic() - clocks[0] < 60",
    ),
}
MOUNTS = [
    {"kind": "volume", "source": "data", "target": "/data"},
    {"kind": "tmpfs", "target": "/scratch"},
]


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    yield module_pair
    for name in ("c", "other"):
        module_pair.remove(name)


def make_states(talk: Conversation) -> None:
    for name, (make, _) in STATES.items():
        assert talk.run(make) is None, name


def check_states(talk: Conversation) -> None:
    for name, (_, check) in STATES.items():
        assert talk.run(check) is True, name


def test_everything_is_as_it_was_after_checkpoint_and_restore(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("c", mounts=MOUNTS))
    make_states(talk)
    counted = talk.count()
    pair.act("alpha", "c", "checkpoints", name="one")
    assert wait_until(lambda: pair.status("alpha", "c") == "exited")
    pair.act("alpha", "c", "restore", checkpoint="one")
    assert talk.count() == counted + 1
    check_states(talk)
    talk.close()


def test_everything_is_as_it_was_after_a_move(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("c", mounts=MOUNTS))
    make_states(talk)
    pair.migrate("c", "alpha", "beta")
    check_states(talk)
    talk.close()


def test_a_client_keeps_its_connection_over_checkpoints_that_let_it_run(pair: Pair) -> None:
    counter = Counter(pair.world, pair.run("c"))
    counter.wait_for_more()
    for name in ("one", "two"):
        pair.act("alpha", "c", "checkpoints", name=name, leave_running=True)
        counter.wait_for_more()
    counter.finish()


def test_a_program_with_a_terminal_is_restored_with_it(pair: Pair) -> None:
    talk = Conversation(pair.world, pair.run("c", tty=True, stdin_open=True))
    assert talk.run("answer = os.isatty(0), os.ttyname(1)") == [True, talk.run("answer = os.ttyname(1)")]
    pair.act("alpha", "c", "checkpoints", name="one")
    assert wait_until(lambda: pair.status("alpha", "c") == "exited")
    pair.act("alpha", "c", "restore")
    assert talk.run("answer = os.isatty(0) and os.write(1, b'still here')") == 10
    talk.close()


def test_a_socket_to_the_outside_is_named_and_the_program_runs_on(pair: Pair) -> None:
    shared = [{"kind": "volume", "source": "shared", "target": "/shared"}]
    other = Conversation(pair.world, pair.run("other", mounts=shared))
    assert other.run("d = socket.socket(socket.AF_UNIX); d.bind('/shared/s'); d.listen()") is None
    counter = Counter(pair.world, pair.run("c", mounts=shared))
    talk = Conversation(pair.world, str(pair.find("alpha", "c")["attachment"]["address"]))  # type: ignore[index]
    assert talk.run("g = socket.socket(socket.AF_UNIX); g.connect('/shared/s')") is None
    with pytest.raises(CheckpointFailed, match="unix socket whose other end is outside") as error:
        pair.act("alpha", "c", "checkpoints", name="one")
    assert error.value.hint == "close that connection first"
    counter.wait_for_more()
    assert pair.status("alpha", "c") == "running"
    assert talk.run("g.close()") is None
    pair.act("alpha", "c", "checkpoints", name="one", leave_running=True)
    counter.finish()
    for each in (talk, other):
        each.close()


@pytest.mark.parametrize("is_written", [False, True], ids=["between two renames", "while CRIU works"])
def test_a_restore_that_died_with_insulad_leaves_the_files_as_they_were(pair: Pair, is_written: bool) -> None:
    """As a kill leaves it: the writable layer is aside, and that of the checkpoint in its place, or not yet."""
    talk = Conversation(pair.world, pair.run("c"))
    talk.run("open('/root/latest', 'w').close()")
    talk.close()
    record = pair.find("alpha", "c")
    assert record is not None
    pair.client("alpha").call("POST", "/v1/containers/c/stop")
    state = pair.host("alpha").folder / "state"
    upper = state / "containers" / record["id"] / "upper"
    pair.kill_daemon("alpha")
    upper.rename(upper.with_name("upper.old"))
    if is_written:
        upper.mkdir()
    with closing(Store(state / "db.sqlite")) as store:
        store.change_container(record["id"], lambda now: replace(now, status=Status.RESTORING))
    pair.restart("alpha")
    assert pair.status("alpha", "c") == "exited"
    assert sorted(each.name for each in upper.parent.iterdir() if "upper" in each.name) == ["upper"]
    pair.client("alpha").call("POST", "/v1/containers/c/start")
    talk = Conversation(pair.world, record["attachment"]["address"])
    assert talk.run("answer = os.path.exists('/root/latest')")
    talk.close()


def test_a_start_that_cannot_be_written_down_has_not_happened(pair: Pair) -> None:
    pair.run("c")
    record = pair.find("alpha", "c")
    assert record is not None
    pair.client("alpha").call("POST", "/v1/containers/c/stop")
    with closing(
        sqlite3.connect(pair.host("alpha").folder / "state/db.sqlite", isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")  # no other can write
        with pytest.raises(InsulaError, match="cannot use the store"):
            pair.client("alpha").call("POST", "/v1/containers/c/start")
        other.execute("ROLLBACK")
    assert wait_until(lambda: not cleanup.members(record["id"]))
    pair.client("alpha").call("POST", "/v1/containers/c/start")
    assert pair.status("alpha", "c") == "running"

# SPDX-License-Identifier: Apache-2.0
"""Dump and restore through the spawner, of programs whose state must come through; no daemon is involved.

Needs the CRIU that `insula setup` found good on this host.
"""

import os
import signal
import socket
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from insula.boot import engine, protocol
from insula.boot.engine import FIRST_INHERITED_FD, IMAGES_FD, RPC_FD
from insula.kernel import criu
from insula.kernel.cgroup import Group
from insula.kernel.criu_find import find_criu
from insula.model import stream
from spawned import PYTHON, Refused, Spawned, Started, is_alive, status_of, wait_until
from waiting import DEADLINE_S

IMAGES = f"/proc/self/fd/{IMAGES_FD}"


def _engine(host: Spawned, images: int, **body: object) -> tuple[socket.socket, dict[str, str]]:
    program = find_criu()
    assert program is not None, "no CRIU: run scripts/setup"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            argv = [*program.argv, "swrk", str(RPC_FD)]
            answer = host.client.ask("criu", descriptors=(theirs.fileno(), images), argv=argv, **body)
        undo.pop_all()
    ours.settimeout(3 * DEADLINE_S)
    return ours, answer["external"]


def _places(container: Started) -> tuple[str, ...]:
    binds = enumerate(container.plan.mounts)
    return (
        "mnt[/dev]:dev",
        *(f"mnt[{each.target}]:mount{number}" for number, each in binds if each.kind == "bind"),
    )


def _dump(
    host: Spawned,
    container: Started,
    images: int,
    *,
    leave_running: bool = False,
    handle: Callable[[criu.Notification], bool] = lambda _stage: True,
) -> criu.Response:
    connection, _ = _engine(host, images)
    with connection:
        options = criu.Options(
            images_dir=IMAGES,
            pid=container.pid,
            external=_places(container),
            leave_running=leave_running,
            log_file="dump.log",
        )
        return criu.request(connection, criu.DUMP, options, handle=handle)


def _log(images: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=images), errors="replace") as file:
        return "".join(line for line in file if "Error" in line)[-3000:]


def _links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


def _restore(host: Spawned, container: Started, images: int, links: list[str]) -> None:
    host.client.ask("prepare", plan=protocol.encode(container.plan))
    connection, places = _engine(host, images, restore=protocol.encode(container.plan))
    terminals: list[int] = []

    def handle(stage: criu.Notification) -> bool:
        if stage.stage == "setup-namespaces":
            host.client.ask("plug", key=container.key, pid=stage.pid)
        terminals.extend(stage.descriptors)
        return True

    inherited = {link: FIRST_INHERITED_FD + number for number, link in enumerate(links) if "pipe:" in link}
    options = criu.Options(
        images_dir=IMAGES,
        root=engine.ROOT,
        external=tuple(f"mnt[{name}]:{path}" for name, path in places.items()),
        inherit_fd=tuple(inherited.items()),
        rst_sibling=True,
        log_file="restore.log",
    )
    is_adopted = False
    try:
        with connection:
            response = criu.request(connection, criu.RESTORE, options, handle=handle)
        assert response.success, _log(images, "restore.log")
        host.client.ask("adopt", descriptors=tuple(terminals[:1]), key=container.key, pid=response.pid)
        is_adopted = True
    finally:
        for each in terminals:
            os.close(each)
        if not is_adopted:
            host.client.ask("discard", key=container.key)
    container.pid = response.pid


def _carry(host: Spawned, container: Started, images: int) -> None:
    """Dump a container, let go of it, restore it."""
    links = _links(container.pid)
    response = _dump(host, container, images)
    assert response.success, _log(images, "dump.log")
    assert host.client.wait_exit(container.key) == 137
    host.client.events.clear()
    host.client.ask("forget", key=container.key)
    _restore(host, container, images, links)


def _wait_logged(container: Started, word: str) -> str:
    wait_until(lambda: word in container.logged(), what=f"`{word}` in the log of {container.key}")
    return container.logged()


LOOP = 'i=0; while true; do echo "at-$i"; i=$((i+1)); sleep 0.02; done'


@pytest.mark.parametrize("init", ["", "/bin/tini"])
def test_shell_loop_goes_on_counting(host: Spawned, images: int, init: str) -> None:
    container = host.start("/bin/sh", "-c", LOOP, init=init)
    _wait_logged(container, "at-5\n")
    _carry(host, container, images)
    before = int(container.logged().split()[-1].removeprefix("at-"))
    text = _wait_logged(container, f"at-{before + 5}\n")
    assert text.split() == [f"at-{number}" for number in range(len(text.split()))], "no line lost, none twice"


def test_restored_container_is_as_isolated_as_before(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")
    keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "SigIgn")
    before = {key: status_of(container.pid)[key] for key in keys}
    _carry(host, container, images)
    assert {key: status_of(container.pid)[key] for key in keys} == before
    for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"):
        assert os.readlink(f"/proc/{container.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert int(status_of(container.pid)["PPid"]) == host.process.pid
    assert container.pid in host.group(container).pids()
    assert sorted(os.listdir(f"/proc/{container.pid}/fd"))[:3] == ["0", "1", "2"]
    mounts = Path(f"/proc/{container.pid}/mountinfo").read_text()
    assert str(host.run) not in mounts and str(host.state) not in mounts


def test_restored_container_is_a_container(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")
    _carry(host, container, images)
    assert host.held()[container.key]["exit_code"] is None
    ended = host.execute_shell(
        container, "id -u; cat /proc/sys/kernel/hostname; ls /proc | grep -c '^1$'; echo x > /root/x; exit 4"
    )
    assert (ended.code, ended.out.split()) == (4, ["0", container.key, "1"]), ended
    attached = host.attach(container)
    attached.read_until(b"at-")
    assert host.end(container) == 137


def test_carried_twice(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    for number in (3, 40):
        _wait_logged(container, f"at-{number}\n")
        _carry(host, container, images)
        for name in os.listdir(images):
            os.unlink(name, dir_fd=images)
    _wait_logged(container, "at-80\n")


def test_exit_code_after_a_restore(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", "echo ready; read line; exit 12", stdin_open=True)
    _wait_logged(container, "ready")
    _carry(host, container, images)
    attached = host.attach(container)
    attached.type(b"go\n")
    assert attached.wait_exit() == 12
    assert host.client.wait_exit(container.key) == 12


def test_program_as_a_user_with_a_volume(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP, user="user", python=True)
    _wait_logged(container, "at-3\n")
    _carry(host, container, images)
    before = int(container.logged().split()[-1].removeprefix("at-"))
    _wait_logged(container, f"at-{before + 5}\n")
    assert host.execute_shell(container, "test -d /usr/bin && id -u", user="user").out == "1000\n"


def test_what_lies_in_a_tmpfs_is_packed_and_not_compressed(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", f"head -c 3000000 /dev/urandom > /dev/shm/kept; {LOOP}")
    _wait_logged(container, "at-1\n")
    _carry(host, container, images)
    folder = Path(f"/proc/self/fd/{images}")
    found = sorted(folder.glob("tmpfs-dev-*"), key=lambda each: each.stat().st_size)
    with tarfile.open(found[-1], mode="r:") as packed:
        assert [each.size for each in packed if each.name == "./kept"] == [3_000_000]
    assert host.execute_shell(container, "stat -c %s /dev/shm/kept").out == "3000000\n"


def test_a_users_stdout_can_be_opened_again_after_a_restore(host: Spawned, images: int) -> None:
    script = 'i=0; while true; do echo "at-$i" > /dev/stdout; i=$((i+1)); sleep 0.02; done'
    container = host.start("/bin/sh", "-c", script, user="user")
    _wait_logged(container, "at-3\n")
    _carry(host, container, images)
    before = int(container.logged().split()[-1].removeprefix("at-"))
    _wait_logged(container, f"at-{before + 5}\n")


#: name → Python that prints `ready`, waits for /root/go (made after the restore), then prints `good`.
PROGRAMS = {
    "pipe": """
read, write = os.pipe()
os.write(write, b"in the pipe")
wait()
assert os.read(read, 100) == b"in the pipe"
""",
    "timers": """
fired = []
signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
began = time.monotonic()
wait()
count = len(fired)
while len(fired) < count + 2: time.sleep(0.05)
assert time.monotonic() >= began
""",
    "shared memory": """
shared = mmap.mmap(-1, 1 << 20)
shared[:5] = b"words"
child = os.fork()
if child == 0:
    wait()
    shared[5:9] = b"more"
    os._exit(0)
wait()
os.waitpid(child, 0)
assert shared[:9] == b"wordsmore"
""",
    "posix shared memory": """
file = open("/dev/shm/segment", "w+b")
file.truncate(1 << 16)
shared = mmap.mmap(file.fileno(), 1 << 16)
shared[:5] = b"words"
wait()
assert open("/dev/shm/segment", "rb").read(5) == b"words"
""",
    "unlinked file": """
file = open("/root/gone", "w+b")
file.write(b"kept" * 50000); file.flush()
os.unlink("/root/gone")
wait()
file.seek(0)
assert file.read() == b"kept" * 50000 and not os.path.exists("/root/gone")
""",
    "threads": """
counts = [0] * 4
def count(number):
    while True: counts[number] += 1; time.sleep(0.001)
for number in range(4): threading.Thread(target=count, args=(number,), daemon=True).start()
wait()
before = list(counts)
until = time.monotonic() + 60
while not all(now > then > 0 for now, then in zip(counts, before)):
    assert time.monotonic() < until, counts
    time.sleep(0.01)
""",
    "unix sockets": """
one, other = socket.socketpair()
one.send(b"on the way")
wait()
assert other.recv(100) == b"on the way"
other.send(b"back"); assert one.recv(10) == b"back"
""",
    "tcp within": """
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname())
other, _ = listener.accept()
one.send(b"on the way")
wait()
assert other.recv(100) == b"on the way"
third = socket.create_connection(listener.getsockname())
""",
    "epoll and eventfd": """
made = os.eventfd(0)
poll = select.epoll()
poll.register(made, select.EPOLLIN)
wait()
os.eventfd_write(made, 3)
assert poll.poll(60) and os.eventfd_read(made) == 3
""",
    "memory": """
data = {number: bytes([number]) * 100000 for number in range(200)}
wait()
assert all(value == bytes([key]) * 100000 for key, value in data.items())
""",
    "open file at an offset": """
file = open("/root/file", "w+b", buffering=0)
file.write(b"0123456789"); file.seek(4)
wait()
assert file.read(2) == b"45"
""",
    "zombie and children": """
children = [os.fork() for _ in range(3)]
if 0 in children:
    wait(); os._exit(5)
zombie = os.fork()
if zombie == 0: os._exit(9)
while open(f"/proc/{zombie}/stat").read().split()[2] != "Z": time.sleep(0.01)
wait()
assert os.waitstatus_to_exitcode(os.waitpid(zombie, 0)[1]) == 9
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [5, 5, 5]
""",
}
PROLOGUE = """
import mmap, os, select, signal, socket, threading, time
def wait():
    if os.getpid() == 1: print("ready", flush=True)
    while not os.path.exists("/root/go"): time.sleep(0.01)
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_state_comes_through(host: Spawned, images: int, name: str) -> None:
    code = PROLOGUE + PROGRAMS[name] + 'print("good", flush=True)\n'
    container = host.start(PYTHON, "-ISc", code, python=True)
    wait_until(lambda: "ready" in container.logged() or not is_alive(container.pid), what="the program waits")
    assert "ready" in container.logged(), container.logged(stream.STDERR)
    _carry(host, container, images)
    assert host.execute_shell(container, "touch /root/go").code == 0
    code_at_end = host.client.wait_exit(container.key)
    assert (code_at_end, container.logged().split()) == (0, ["ready", "good"]), container.logged(
        stream.STDERR
    )


def test_terminal_comes_through(host: Spawned, images: int) -> None:
    script = "echo ready; read x; echo got-$x; stty size; exit 3"
    container = host.start("/bin/sh", "-c", script, tty=True, rows=31, columns=77)
    _wait_logged(container, "ready")
    _carry(host, container, images)
    attached = host.attach(container)
    attached.type(b"word\n")
    assert attached.wait_exit() == 3
    assert b"got-word" in attached.collected() and b"31 77" in attached.collected()


def test_dump_while_an_exec_runs(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")
    host.execute(container, "/bin/sleep", "1000")
    response = _dump(host, container, images, leave_running=True)
    # Its pipes are ours, so CRIU may refuse; then nothing has happened.
    if not response.success:
        assert criu.find_cause(_log(images, "dump.log")).line
    _assert_runs_on(host, container)


def _assert_runs_on(host: Spawned, container: Started) -> None:
    before = int(container.logged().split()[-1].removeprefix("at-"))
    _wait_logged(container, f"at-{before + 5}\n")
    assert host.held()[container.key]["exit_code"] is None
    assert host.execute_shell(container, "echo fine").out == "fine\n"


def test_left_running_it_runs_on(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")
    assert _dump(host, container, images, leave_running=True).success, _log(images, "dump.log")
    _assert_runs_on(host, container)


@pytest.mark.parametrize("at", ["network-lock", "post-dump"])
def test_refused_dump_leaves_the_program_running(host: Spawned, images: int, at: str) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")
    seen: list[str] = []

    def refuse(stage: criu.Notification) -> bool:
        seen.append(stage.stage)
        return stage.stage != at

    response = _dump(host, container, images, handle=refuse)
    assert at in seen and not response.success
    _assert_runs_on(host, container)


TRACED = """
import ctypes, os, signal, time
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, 0)
number = 0
while True:
    print(f"at-{number}", flush=True); number += 1; time.sleep(0.02)
"""


def test_dump_that_criu_cannot_do_leaves_the_program_running(host: Spawned, images: int) -> None:
    container = host.start(PYTHON, "-ISc", TRACED, python=True)
    _wait_logged(container, "at-1\n")
    assert not _dump(host, container, images).success
    assert "debugger" in criu.find_cause(_log(images, "dump.log")).resource, _log(images, "dump.log")
    _assert_runs_on(host, container)


def test_killed_criu_leaves_the_program_running(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-1\n")

    def kill(stage: criu.Notification) -> bool:
        if stage.stage == "network-lock":
            for pid in _engines(host):
                os.kill(pid, signal.SIGKILL)
        return True

    with pytest.raises(OSError):
        _dump(host, container, images, handle=kill)
    _assert_runs_on(host, container)


def _engines(host: Spawned) -> list[int]:
    pid = host.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # CRIU changes its own title; what it executes stays.
    return [int(child) for child in children if b"criu" in Path(f"/proc/{child}/maps").read_bytes()]


def test_failed_restore_leaves_nothing_and_can_be_done_again(host: Spawned, images: int) -> None:
    container = host.start("/bin/sh", "-c", LOOP)
    _wait_logged(container, "at-3\n")
    links = _links(container.pid)
    assert _dump(host, container, images).success
    host.client.wait_exit(container.key)
    host.client.events.clear()
    host.client.ask("forget", key=container.key)
    os.rename("pstree.img", "kept.img", src_dir_fd=images, dst_dir_fd=images)
    with pytest.raises((AssertionError, criu.CriuGone)):
        _restore(host, container, images, links)
    assert not host.group(container).exists() and not host.held()
    wait_until(lambda: not _engines(host), what="CRIU has ended")
    os.rename("kept.img", "pstree.img", src_dir_fd=images, dst_dir_fd=images)
    _restore(host, container, images, links)
    _assert_runs_on(host, container)


def test_room_that_is_discarded_leaves_nothing(host: Spawned) -> None:
    def held() -> int:
        return len(os.listdir(f"/proc/{host.process.pid}/fd"))

    plan = host.plan("/bin/true")
    before = held()
    host.client.ask("prepare", plan=protocol.encode(plan))
    host.client.ask("discard", key=plan.key)
    host.client.ask("discard", key=plan.key)
    # An earlier test's CRIU may have ended in between.
    wait_until(lambda: held() <= before, what="no descriptor is left")
    assert not host.group(Started(plan, 0)).exists()


def test_a_restore_that_cannot_begin_leaves_no_mount_behind(host: Spawned, images: int) -> None:
    def held_after_a_refusal() -> int:
        with pytest.raises(Refused, match=plan.key):
            _engine(host, images, restore=protocol.encode(plan))
        return len(os.listdir(f"/proc/{host.process.pid}/fd"))

    plan = host.plan("/bin/true")
    host.client.ask("prepare", plan=protocol.encode(plan))
    Group(host.hierarchies, host.parent, plan.key).delete(0.0)
    try:
        assert held_after_a_refusal() == held_after_a_refusal()
    finally:
        host.client.ask("discard", key=plan.key)

# SPDX-License-Identifier: Apache-2.0
"""What the preflight calls an obstacle CRIU does refuse, and what it lets pass CRIU does not; tried with both."""

import os
import socket
import subprocess
import sys
import time

import pytest

from insula.boot.engine import IMAGES_FD, RPC_FD
from insula.kernel import caps, criu
from insula.kernel.criu_find import find_criu
from insula.runtime.obstacles import find_obstacles, watched_folders
from spawned import PYTHON, Spawned, Started, is_alive, wait_until
from waiting import DEADLINE_S

PROLOGUE = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    done = libc.syscall(*[ctypes.c_long(each) if isinstance(each, int) else each for each in words])
    if done < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
def wait():
    while True: time.sleep(1)
def child(work):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            work()
            os.write(write, b"x")
            wait()
        finally:
            os._exit(1)
    os.close(write)
    if not os.read(read, 1): raise OSError(1, "in the child")
"""

#: part of the resource's name → what makes it; needs no default protection where the default filter refuses it.
REFUSED = {
    "an io_uring instance": "fd = call(425, 8, ctypes.create_string_buffer(120))",
    "a userfaultfd": "fd = call(323, 1)",
    "(AF_VSOCK)": "s = socket.socket(40, 1, 0)",
    "(XDP)": "s = socket.socket(44, 3, 0)",
    "a multipath TCP socket": "s = socket.socket(2, 1, 262)",
    "a nested user namespace": "child(lambda: call(272, 0x10000000))",
    "a nested pid namespace": "child(lambda: (call(272, 0x20000000), os.fork() or wait()))",
    "a nested net namespace": "child(lambda: call(272, 0x40000000))",
    "a nested ipc namespace": "child(lambda: call(272, 0x8000000))",
    "a nested uts namespace": "child(lambda: call(272, 0x4000000))",
    "a nested cgroup namespace": "child(lambda: call(272, 0x2000000))",
    "a nested time namespace": "child(lambda: call(272, 0x80))",
    "a POSIX message queue": "fd = call(240, b'queue', 0o102, 0o600, None)",
    "huge pages in a memfd": "fd = os.memfd_create('h', 4)",
    "secret memory": "fd = call(447, 0); os.ftruncate(fd, 4096); m = mmap.mmap(fd, 4096); m[0] = 1; os.close(fd)",
    "a process that a debugger holds": """
if (pid := os.fork()) == 0: wait()
call(101, 0x4206, pid, 0, 0)""",
    "a seccomp listener": """
libc.prctl(38, 1, 0, 0, 0)
kept = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
fd = call(317, 1, 8, ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(kept))))""",
    "a Landlock ruleset": "fd = call(444, ctypes.create_string_buffer(struct.pack('QQ', 1, 0), 16), 8, 0)",
    "a file system that is being made": "fd = call(430, b'tmpfs', 0)",
    "a pipe in packet mode": "a, b = os.pipe2(os.O_DIRECT)",
    "a pidfd of a single thread": "fd = call(434, os.getpid(), os.O_EXCL)",
    "a process whose first thread has ended": """
import threading
if (pid := os.fork()) == 0:
    threading.Thread(target=wait).start()
    libc.syscall(60, 0)
while "State:\\tZ" not in open(f"/proc/{pid}/status").read(): time.sleep(0.01)""",
    "a netlink socket that listens to a group above 32": """
s = socket.socket(16, 3, 0); s.bind((0, 0)); s.setsockopt(270, 1, 33)""",
    "a netlink socket that listens and has no address": "s = socket.socket(16, 3, 0); s.setsockopt(270, 1, 1)",
    "an open file outside the container": "fd = call(428, -100, b'/root', 1)",
}

CARRIED = {
    "descriptors": """
a = libc.timerfd_create(1, 0); b = os.eventfd(3); c = select.epoll(); d = os.pidfd_open(os.getpid()); e = os.pipe()
f = os.memfd_create("m", 2); g = os.openpty(); h = open("/dev/null"); i = open("/dev/urandom"); j = open("/proc/self/status")
k = libc.inotify_init(); libc.inotify_add_watch(k, b"/etc", 0xfff); l = os.open("/root", 0o10000000)
m = call(282, -1, ctypes.create_string_buffer(struct.pack("Q", 512)), 8); n = os.open("/proc/self/ns/net", os.O_RDONLY)""",
    "sockets": """
a = socket.socket(17, 3, 0x300); b = socket.socket(2, 3, 1); c = socket.socket(10, 3, 58); d = socket.socket(16, 3, 0)
d.bind((0, 1)); e = socket.socket(2, 2, 136); f = socket.create_server(("127.0.0.1", 0)); g = socket.socketpair()
h = socket.socket(1, 2); h.bind("/root/s"); i = socket.socket(1, 2); i.connect("/root/s"); j = socket.socket(2, 2)
k = socket.socket(1, 1); k.bind("/root/t"); k.listen(); l = socket.socket(1, 1); l.connect("/root/t"); os.unlink("/root/t")
m = socket.socket(10, 2); n = socket.socket(2, 1); o, p = socket.socketpair(); p.close()""",
    "memory": """
a = libc.semget(0, 3, 0o1600); b = libc.msgget(0, 0o1600); c = libc.shmget(0, 8192, 0o1600)
libc.shmat.restype = ctypes.c_void_p; libc.shmat(c, None, 0)
d = ctypes.c_ulong(0); call(206, 16, ctypes.byref(d)); e = mmap.mmap(-1, 1 << 16)""",
    "files": """
a = open("/root/gone", "wb+"); a.write(b"x" * 2000000); a.flush(); os.unlink("/root/gone")
os.mkdir("/root/d"); b = os.open("/root/d", os.O_RDONLY); os.chdir("/root/d"); os.rmdir("/root/d")
c = open("/root/l", "w"); fcntl.flock(c, 2); os.mkfifo("/root/f"); d = os.open("/root/f", os.O_RDWR)
e = mmap.mmap(a.fileno(), 4096)""",
    "a nested mount namespace": "child(lambda: call(272, 0x20000))",
    "mounts": "assert libc.mount(b'x', b'/home', b'tmpfs', 0, None) == 0; f = open('/home/a', 'w+')",
}


def _dump(host: Spawned, container: Started, images: int) -> criu.Response:
    """Dump, and let it run on."""
    program = find_criu()
    assert program is not None, "no CRIU: run scripts/setup"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            argv = [*program.argv, "swrk", str(RPC_FD)]
            host.client.ask("criu", descriptors=(theirs.fileno(), images), argv=argv)
        ours.settimeout(3 * DEADLINE_S)
        places = [
            f"mnt[{m.target}]:mount{n}" for n, m in enumerate(container.plan.mounts) if m.kind == "bind"
        ]
        options = criu.Options(
            images_dir=f"/proc/self/fd/{IMAGES_FD}",
            pid=container.pid,
            external=("mnt[/dev]:dev", *places),
            leave_running=True,
            log_file="dump.log",
        )
        return criu.request(ours, criu.DUMP, options, handle=lambda _stage: True)


def _log(images: int) -> str:
    with open(os.open("dump.log", os.O_RDONLY | os.O_CLOEXEC, dir_fd=images), errors="replace") as file:
        return "".join(line for line in file if "Error" in line)[-3000:]


def _run(host: Spawned, code: str) -> Started | None:
    """Start a program that makes a thing, with the default protection if that allows it, else without."""
    words = (PYTHON, "-ISc", f"{PROLOGUE}{code}\nprint('ready', flush=True)\nwait()\n")
    for options in ({}, {"seccomp": False, "capabilities": tuple(sorted(caps.ALL))}):
        container = host.start(*words, python=True, **options)
        wait_until(lambda: "ready" in container.logged() or not is_alive(container.pid), what="it is made")  # noqa: B023
        if "ready" in container.logged():
            return container
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_an_obstacle_is_found_and_true(host: Spawned, images: int, name: str) -> None:
    container = _run(host, REFUSED[name])
    if container is None:
        return  # a kernel that cannot make it has no such obstacle
    found = find_obstacles(host.group(container).pids())
    assert any(name in each.resource and each.cure for each in found), found
    assert not _dump(host, container, images).success
    assert is_alive(container.pid)


@pytest.mark.parametrize("name", CARRIED)
def test_what_can_be_carried_is_no_obstacle(host: Spawned, images: int, name: str) -> None:
    container = _run(host, CARRIED[name])
    assert container is not None
    assert find_obstacles(host.group(container).pids()) == ()
    assert _dump(host, container, images).success, _log(images)


def test_a_connection_to_the_outside_is_found(host: Spawned, images: int) -> None:
    container = _run(
        host,
        "l = socket.socket(1, 1); l.bind('/root/s'); l.listen(); print('ready', flush=True); c = l.accept()",
    )
    assert container is not None
    with socket.socket(socket.AF_UNIX) as outside:
        outside.connect(f"/proc/{container.pid}/root/root/s")
        wait_until(lambda: len(os.listdir(f"/proc/{container.pid}/fd")) > 4, what="it is accepted")
        (found,) = find_obstacles(host.group(container).pids())
        assert "unix socket whose other end is outside" in found.resource
        assert not _dump(host, container, images).success


def test_the_default_filter_refuses_what_could_not_be_carried(host: Spawned) -> None:
    for name in ("an io_uring instance", "a userfaultfd", "(AF_VSOCK)", "a nested pid namespace"):
        done = host.run_to_end(PYTHON, "-ISc", PROLOGUE + REFUSED[name], python=True)
        refused = "PermissionError" in done.err or "[Errno 97]" in done.err  # EAFNOSUPPORT
        assert done.code != 0 and refused, (name, done.err)


def test_two_hundred_processes_are_looked_at_and_none_of_the_dead(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "for i in $(seq 200); do sleep 1000 & done; echo ready; wait")
    wait_until(lambda: len(host.group(container).pids()) >= 200, what="all run")
    began = time.monotonic()
    assert find_obstacles([*host.group(container).pids(), 2**22 - 1]) == ()
    print(f"{(time.monotonic() - began) * 1000:.1f} ms", file=sys.stderr)
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    assert find_obstacles([gone.pid]) == ()
    assert find_obstacles([]) == ()


def test_a_program_that_runs_from_memory_is_found(host: Spawned) -> None:
    """CRIU dumps it, and cannot restore it: nobody could go back any more."""
    container = _run(
        host,
        """
fd = os.memfd_create("b", 0); os.write(fd, open("/bin/busybox", "rb").read())
if (pid := os.fork()) == 0: os.execve(fd, ["sleep", "1000"], {})
while not open(f"/proc/{pid}/cmdline", "rb").read().startswith(b"sleep"): time.sleep(0.01)
os.close(fd)""",
    )
    assert container is not None
    (found,) = find_obstacles(host.group(container).pids(), init=container.pid)
    assert found.resource == "a program that runs from memory alone (a memfd)"


def test_where_watches_are_looked_for(host: Spawned) -> None:
    container = _run(host, "pass")
    assert container is not None
    assert watched_folders(host.group(container).pids(), init=container.pid) == ()
    container = _run(host, "k = libc.inotify_init(); libc.inotify_add_watch(k, b'/root', 0xfff)")
    assert container is not None
    folders = watched_folders(host.group(container).pids(), init=container.pid)
    assert {"/root", "/home", "/var", "/tmp", "/etc"} <= set(folders)
    assert not {"/proc", "/dev", "/usr", "/"} & set(folders)

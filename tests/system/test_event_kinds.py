# SPDX-License-Identifier: Apache-2.0
"""Every kind of event: provoked by a real program in a real container, told with the right fields, and not next door.

`docs/events.md` names the test of each kind; `tests/unit/monitor/test_events_doc.py` holds both together.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hosted import Host, wait_until
from insula.client.http import Client
from insula.kernel.bpf_object import knows_tracepoint
from insula.model.errors import InsulaError
from insula.model.monitor import Event, Lost, TraceLine
from waiting import DEADLINE_S

LINE = msgspec.json.Decoder(TraceLine)
#: Of the caller alone: what a test expects beside the fields it names.
MARK = "insula-mark"


class Stream(threading.Thread):
    """All that a container does, read in the background."""

    def __init__(self, host: Host, container: str, **query: str) -> None:
        super().__init__(daemon=True)
        self.lines: list[TraceLine] = []
        client = Client(f"unix://{host.socket_path}")
        self._answer = client.open("GET", f"/v1/containers/{container}/trace", query=query)

    def run(self) -> None:
        with contextlib.suppress(OSError, InsulaError):  # hung up by `close`
            for line in self._answer.lines():
                if line.strip():
                    self.lines.append(LINE.decode(line))

    def events(self) -> list[Event]:
        return [line for line in list(self.lines) if isinstance(line, Event)]

    def find(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event."""
        wait_until(
            lambda: any(map(wanted, self.events())),
            what=lambda: "no such event among " + "\n".join(map(str, self.events()[-30:])),
        )
        return next(filter(wanted, self.events()))

    def close(self) -> None:
        self._answer.detach().shutdown(2)
        self._answer.close()
        self.join(DEADLINE_S)


class Place:
    """A container that does things, its neighbour, and what is told of both."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.web, self.near = Stream(host, "web"), Stream(host, "near")

    def shell(self, *command: str, user: str = "0", container: str = "web", code: int | None = 0) -> None:
        done = self.host.root.give("exec", "-u", user, container, *command)
        assert code is None or done.code == code, done

    def python(self, text: str, **options: Any) -> None:
        self.shell("/usr/bin/python3", "-SIc", text, **options)

    def seen(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event of the container that acts; its neighbour is told nothing of the kind."""
        event = self.web.find(wanted)
        assert event.name == "web"
        assert event.container == self.host.root.look("web")["id"]
        assert event.pid > 0
        assert event.thread > 0
        assert event.command
        assert not list(filter(wanted, self.near.events()))
        return event


@pytest.fixture(scope="module")
def place(module_host: Host) -> Iterator[Place]:
    root = module_host.root
    caps = ["--cap-add", "SYS_ADMIN", "--cap-add", "SYS_CHROOT"]  # mount(2) gets through
    root("run", "-d", "--name", "web", "--memory", "256m", *caps, "host", "sleep", "1000")
    root("run", "-d", "--name", "near", "host", "sleep", "1000")
    place = Place(module_host)
    for stream in (place.web, place.near):
        stream.start()
    yield place
    for stream in (place.web, place.near):
        assert not [line for line in stream.lines if isinstance(line, Lost)]
        stream.close()
    for name in ("web", "near"):
        root("rm", "-f", name)


def test_the_neighbour_is_told_of_its_own(place: Place) -> None:
    place.shell("/bin/echo", f"{MARK}-near", container="near")
    event = place.near.find(lambda each: f"{MARK}-near" in each.arguments)
    assert event.name == "near"
    assert not [each for each in place.web.events() if f"{MARK}-near" in each.arguments]


def test_exec(place: Place) -> None:
    place.shell("/bin/echo", "a b", "", MARK, user="1000")
    event = place.seen(lambda each: MARK in each.arguments)
    assert (event.kind, event.path, event.command, event.user) == ("exec", "/bin/echo", "echo", 1000)
    assert event.arguments == ("/bin/echo", "a b", "", MARK)


def test_exec_of_a_script_names_script_and_interpreter(place: Place) -> None:
    place.python(
        f"import os\nopen('/tmp/{MARK}.sh', 'w').write('#!/bin/sh\\ntrue\\n'); os.chmod('/tmp/{MARK}.sh', 0o755)\n"
        f"os.execv('/tmp/{MARK}.sh', ['x', 'y'])"
    )
    event = place.seen(lambda each: each.kind == "exec" and each.path == f"/tmp/{MARK}.sh")
    assert event.arguments == ("/bin/sh", f"/tmp/{MARK}.sh", "y")


def test_exec_that_fails(place: Place) -> None:
    place.python(
        f"import os\ntry: os.execv('/{MARK}', ['x'])\nexcept FileNotFoundError: pass\nelse: raise SystemExit(9)"
    )
    event = place.seen(lambda each: each.path == f"/{MARK}")
    assert (event.kind, event.call, event.error) == ("file", "execve", "ENOENT")


def test_fork_and_exit(place: Place) -> None:
    place.python("import os\np = os.fork()\nif not p: os._exit(77)\nos.waitpid(p, 0)")
    ended = place.seen(lambda each: each.detail == "exit code 77")
    forked = place.seen(lambda each: each.detail == f"child {ended.pid}")
    assert (ended.kind, forked.kind) == ("exit", "fork")


def test_signal(place: Place) -> None:
    place.python(
        "import os, signal\np = os.fork()\nif not p: signal.pause()\nos.kill(p, 31); os.waitpid(p, 0)"
    )
    event = place.seen(lambda each: each.detail.startswith("SIGSYS to "))
    assert event.kind == "signal"
    target = int(event.detail.split()[-1])
    assert place.seen(lambda each: each.kind == "exit" and each.pid == target).detail.startswith(
        "killed by SIGSYS"
    )


def test_files(place: Place) -> None:
    """Created, opened, renamed, removed; by whole paths, from the working directory, from a descriptor; refused."""
    place.python(f"""
import ctypes, os, struct
call = ctypes.CDLL(None, use_errno=True).syscall
os.mkdir("/tmp/{MARK}"); os.chdir("/tmp/{MARK}")
os.close(os.open("a", os.O_CREAT | os.O_WRONLY, 0o600))
folder = os.open(".", os.O_PATH)
how = struct.pack("QQQ", os.O_RDWR, 0, 0)
assert call(437, folder, b"./a", how, len(how)) > 0
assert call(316, folder, b"a", folder, b"b", 0) == 0
os.unlink("b", dir_fd=folder)
try: os.open("b", 0, dir_fd=folder)
except FileNotFoundError: pass
os.chdir("/"); os.rmdir("tmp/{MARK}")
""")  # fmt: skip
    place.seen(lambda each: each.call == "rmdir" and each.path == f"/tmp/{MARK}")
    told = [
        (each.call, each.path, each.other_path, each.error)
        for each in place.web.events()
        if each.kind == "file" and each.path.startswith(f"/tmp/{MARK}") and not each.path.endswith(".sh")
    ]
    base = f"/tmp/{MARK}"
    assert told == [
        ("mkdir", base, "", ""),
        ("openat", f"{base}/a", "", ""),
        ("openat", base, "", ""),
        ("openat2", f"{base}/a", "", ""),
        ("renameat2", f"{base}/a", f"{base}/b", ""),
        ("unlinkat", f"{base}/b", "", ""),
        ("openat", f"{base}/b", "", "ENOENT"),
        ("rmdir", base, "", ""),
    ]
    flags = [
        each.detail
        for each in place.web.events()
        if each.path == f"{base}/a" and each.call.startswith("open")
    ]
    assert flags == ["O_WRONLY|O_CREAT", "O_RDWR"]


def test_both_paths_of_a_rename_and_a_link_are_told_from_the_root(place: Place) -> None:
    """From two descriptors, from one and the working directory, beside an absolute path; what a link says is no path."""
    base = f"/tmp/{MARK}-two"
    place.python(f"""
import ctypes, os, shutil
call = ctypes.CDLL(None, use_errno=True).syscall
for name in ("", "/one", "/other"): os.mkdir("{base}" + name)
one, other = (os.open("{base}/" + name, os.O_PATH) for name in ("one", "other"))
os.chdir("{base}")
open("one/a", "w").close()
assert call(316, one, b"a", other, b"b", 0) == 0
assert call(316, other, b"./b", -100, b"c", 0) == 0
os.rename("{base}/c", "d")
os.rename("d", "{base}/e")
os.link("e", "f", dst_dir_fd=one)
os.symlink("../e", "g", dir_fd=one)
os.chdir("/"); shutil.rmtree("{base}"); os.mkdir("{base}-end")
""")  # fmt: skip
    place.seen(lambda each: each.path == f"{base}-end")
    told = [
        (each.path.removeprefix(base), each.other_path.removeprefix(base))
        for each in place.web.events()
        if each.kind == "file" and each.path.startswith(base) and each.other_path
    ]
    assert told == [
        ("/one/a", "/other/b"),
        ("/other/b", "/c"),
        ("/c", "/d"),
        ("/d", "/e"),
        ("/e", "/one/f"),
        ("/one/g", "../e"),
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections(place: Place, host: str) -> None:
    if ":" in host and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("the kernel has no IPv6 (CONFIG_IPV6)")
    port = 20001 if ":" in host else 20002
    place.python(f"""
import socket
family = socket.AF_INET6 if ":" in {host!r} else socket.AF_INET
s = socket.socket(family); s.bind(({host!r}, {port})); s.listen()
c = socket.socket(family); c.connect(s.getsockname()); s.accept()
try: socket.socket(family).connect(({host!r}, {port + 2}))
except ConnectionRefusedError: pass
d = socket.socket(family, socket.SOCK_DGRAM); d.sendto(b"x", ({host!r}, {port + 4}))
d.sendmsg([b"x"], [], 0, ({host!r}, {port + 6}))
""")  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    place.seen(lambda each: each.call == "sendmsg" and each.address == f"{shown}:{port + 6}")
    told = {(each.call, each.address): each for each in place.web.events() if each.kind == "network"}
    assert told["bind", f"{shown}:{port}"].error == ""
    assert told["connect", f"{shown}:{port}"].detail == "tcp"
    assert told["connect", f"{shown}:{port + 2}"].error == "ECONNREFUSED"
    assert told["sendto", f"{shown}:{port + 4}"].detail == "udp"
    port_of_peer = told["connect", f"{shown}:{port}"].port
    assert ("accept4", f"{shown}:{port_of_peer}") in told


def test_unix_sockets(place: Place) -> None:
    place.python(f"""
import socket
s = socket.socket(socket.AF_UNIX); s.bind("/tmp/{MARK}.sock"); s.listen()
socket.socket(socket.AF_UNIX).connect("/tmp/{MARK}.sock")
try: socket.socket(socket.AF_UNIX).connect("\\0{MARK}")
except ConnectionRefusedError: pass
""")  # fmt: skip
    place.seen(lambda each: each.call == "connect" and each.address == f"unix:/tmp/{MARK}.sock")
    assert place.seen(lambda each: each.address == f"unix:@{MARK}").error == "ECONNREFUSED"


def test_mount(place: Place) -> None:
    place.python(f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"{MARK}", b"/nowhere", b"tmpfs", 0, None) == -1
os.mkdir("/mnt/{MARK}"); os.chroot("/mnt/{MARK}")
""")  # fmt: skip
    event = place.seen(lambda each: each.call == "mount" and each.other_path == MARK)
    assert (event.kind, event.path, event.error) == ("mount", "/nowhere", "ENOENT")
    assert place.seen(lambda each: each.call == "chroot" and each.path == f"/mnt/{MARK}").kind == "mount"


def test_paths_of_mounts_are_told_from_the_root(place: Place) -> None:
    """Of binds the source, too, and from descriptors; what names a file system is no path; the root of who changes it is new."""
    base = f"/tmp/{MARK}-mount"
    place.python(f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
BIND, RECURSIVE, REMOUNT, AT_FDCWD, EMPTY_PATH = 4096, 16384, 32, -100, 0x1000
for name in ("", "/from", "/to"): os.mkdir("{base}" + name)
os.chdir("{base}")
folder = os.open("from", os.O_PATH)
libc.mount(b"from", b"to", None, BIND | RECURSIVE, None)
libc.mount(b"any", b"to", None, BIND | REMOUNT, None)
libc.mount(b"tmpfs", b"to", b"tmpfs", 0, None)
libc.umount2(b"to/none", 0)
libc.syscall(428, folder, b"x", 0)
libc.syscall(429, folder, b"x", AT_FDCWD, b"y", 0)
libc.syscall(429, folder, b"", AT_FDCWD, b"to", 4)
libc.syscall(430, b"tmpfs", 0)
libc.umount2(b"to", 2); libc.umount2(b"./to", 2)
libc.syscall(155, b"from", b"{base}/to")
os.chroot(".")
""")  # fmt: skip
    last = place.seen(lambda each: each.call == "chroot" and each.path == ".")
    told = [
        (each.call, each.path.replace(base, "BASE"), each.other_path.replace(base, "BASE"))
        for each in place.web.events()
        if each.kind in ("mount", "seccomp") and each.pid == last.pid
    ]
    assert told == [
        ("mount", "BASE/to", "BASE/from"),
        ("mount", "BASE/to", "any"),
        ("mount", "BASE/to", "tmpfs"),
        ("umount2", "BASE/to/none", ""),
        ("open_tree", "BASE/from/x", ""),
        ("move_mount", "BASE/y", "BASE/from/x"),
        ("move_mount", "BASE/to", ""),
        ("fsopen", "tmpfs", ""),
        ("umount2", "BASE/to", ""),
        ("umount2", "BASE/to", ""),
        ("pivot_root", "from", "BASE/to"),
        ("chroot", ".", ""),
    ]


def test_identity(place: Place) -> None:
    place.python(
        "import os; os.setgid(4242); os.setresuid(4243, 4243, -1)\ntry: os.setuid(4244)\nexcept OSError: pass"
    )
    assert place.seen(lambda each: each.call == "setgid" and each.detail == "4242").kind == "identity"
    event = place.seen(lambda each: each.detail == "4243 4243 -1")
    assert (event.kind, event.call, event.error, event.user) == ("identity", "setresuid", "", 4243)
    assert place.seen(lambda each: each.detail == "4244").error in ("", "EPERM")


@pytest.mark.skipif(not knows_tracepoint("cap_capable"), reason="the kernel has no tracepoint cap_capable")
def test_capability(place: Place) -> None:
    place.python("import os; os.chown('/tmp', 0, 0); os.setpriority(os.PRIO_PROCESS, 0, 0)")
    place.python("import os\ntry: os.chroot('/tmp')\nexcept PermissionError: pass", user="1000")
    assert place.seen(lambda each: each.detail == "SYS_CHROOT refused").kind == "capability"


def test_kernel(place: Place) -> None:
    place.python("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace(16, 4194000, 0, 0)
libc.syscall(321, 5, 0, 0)
""")  # fmt: skip
    traced = place.seen(lambda each: each.call == "ptrace")
    assert (traced.kind, traced.detail, traced.error) == ("kernel", "PTRACE_ATTACH of 4194000", "ESRCH")
    loaded = place.seen(lambda each: each.call == "bpf")
    assert loaded.detail == "BPF_PROG_LOAD"
    assert loaded.error != ""


def test_seccomp(place: Place) -> None:
    """Modules, rings of io_uring, calls of the 32-bit ABI: the filter answers, and that is told."""
    place.python("""
import ctypes, mmap
call = ctypes.CDLL(None, use_errno=True).syscall
assert call(175, 0, 0, 0) == -1
assert call(425, 8, 0) == -1
""")  # fmt: skip
    for name in ("init_module", "io_uring_setup"):
        event = place.seen(lambda each, name=name: each.call == name)  # type: ignore[misc]
        assert event.kind == "seccomp"
        assert event.error in ("EPERM", "ENOSYS")


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the processor has no 32-bit ABI to call by `int $0x80`"
)
def test_a_call_of_another_abi_is_not_taken_for_one_of_ours(place: Place) -> None:
    """39 is mkdir for i386 and getpid for x86-64."""
    place.python("""
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("53 b827000000 31db 31c9 cd80 5b c3"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
open("/tmp/insula-mark-abi", "w")
""", code=None)  # fmt: skip
    place.seen(lambda each: each.call == "syscall 511" or "SIGSYS" in each.detail)
    assert not [each for each in place.web.events() if each.kind == "seccomp" and each.call == "getpid"]


def test_oom(place: Place) -> None:
    place.python("import os\nx = bytearray(600 << 20)", code=137)
    event = place.seen(lambda each: each.kind == "oom")
    assert event.command == "python3"
    assert (
        place.seen(lambda each: each.kind == "exit" and each.pid == event.pid).detail == "killed by SIGKILL"
    )


def test_throttle(place: Place) -> None:
    root = place.host.root
    root("run", "-d", "--name", "slow", "--cpus", "0.05", "host", "sleep", "1000")
    stream = Stream(place.host, "slow", kinds="throttle")
    stream.start()
    place.python("import time; e = time.monotonic() + 1\nwhile time.monotonic() < e: pass", container="slow")
    event = stream.find(lambda each: each.kind == "throttle")
    stream.close()
    root("rm", "-f", "slow")
    assert (event.name, event.result > 0) == ("slow", True)
    assert not [each for each in place.web.events() if each.kind == "throttle"]


@pytest.mark.parametrize(("options", "wanted"), [
    (["-c", "mkdir"], {"mkdir"}),
    (["-k", "network"], {"connect"}),
    (["-p", f"/tmp/{MARK}-f*"], {"mkdir", "rmdir"}),
    (["-a", "127.0.0.1:2"], {"connect"}),
    (["-e", "ECONNREFUSED"], {"connect"}),
    (["-e", "any", "-k", "file", "-p", f"/tmp/{MARK}-f*"], {"rmdir"}),
    (["--command", MARK], {"mkdir", "rmdir", "connect"}),
])  # fmt: skip
def test_a_trace_is_filtered(place: Place, options: list[str], wanted: set[str], tmp_path: Path) -> None:
    """By what `insula trace` offers; its JSON lines are told, nothing else."""
    out = tmp_path / "out"
    with out.open("wb") as file, place.host.root.begin(
        "trace", "--format", "json", *options, "near", stdout=file
    ) as trace:  # fmt: skip
        near_before = len(place.near.events())

        def act() -> bool:
            place.python(f"""
import os, socket
open("/proc/self/comm", "w").write("{MARK}")
os.mkdir("/tmp/{MARK}-f")
for _ in range(2):
    try: os.rmdir("/tmp/{MARK}-f")
    except OSError: pass
try: socket.socket().connect(("127.0.0.1", 2))
except OSError: pass
""", container="near")  # fmt: skip
            return {each.call for each in told_in(out)} >= wanted

        wait_until(act, what=lambda: f"a filtered trace tells {wanted}: {out.read_bytes()!r}")
        wait_until(lambda: len(place.near.events()) > near_before, what="an open trace tells it, too")
        trace.terminate()
        trace.wait(DEADLINE_S)
    for each in told_in(out):
        assert each.name == "near"
        assert "-c" not in options or each.call == "mkdir"
        assert "-p" not in options or each.path == f"/tmp/{MARK}-f"
        assert "-a" not in options or each.address == "127.0.0.1:2"
        assert "ECONNREFUSED" not in options or each.error == "ECONNREFUSED"
        assert "any" not in options or each.error
        assert "--command" not in options or each.command == MARK
        assert "-k" not in options or each.kind == options[options.index("-k") + 1]


def told_in(out: Path) -> list[Event]:
    """Return the events in a file of lines, of which the last may not be whole yet; but for starts of programs."""
    whole, _, _ = out.read_bytes().rpartition(b"\n")
    lines = [LINE.decode(line) for line in whole.splitlines()]
    return [line for line in lines if isinstance(line, Event) and line.call != "execve"]

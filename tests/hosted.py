# SPDX-License-Identifier: Apache-2.0
"""A real host for tests: insulad in a network namespace of its own, and three people who give it commands by the CLI.

root is the administrator; alice and bob are two ordinary uids (they need no account) in the group that may use the socket.
Everything lies below one folder and one cgroup parent; `insula daemon --teardown` takes it away, and the tests' count
(`leftovers.py`) proves it.  Every wait has a deadline.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from demo.users import install_program

import netns
from insula.kernel.netlink import Route, namespace_entered
from searched import found_below
from waiting import DEADLINE_S, wait_until

ALICE_UID, BOB_UID = 64711, 64712
GROUP, GROUP_ID = "users", 100
"""Debian's own group, there on each machine."""
POOL = "10.213.0.0/16"
_IDENTITY = threading.Lock()
"""The effective ids are the whole process's: held while they are somebody else's."""
BUSYBOX = Path("/bin/busybox")
SOURCE = Path(__file__).resolve().parent.parent / "src"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def emptied_after(host: "Host") -> Iterator["Host"]:
    """For a test on a host that lives longer: what it leaves is removed, and has to be gone then."""
    yield host
    if host.daemon is None or host.daemon.poll() is not None:
        host.start()
    host.remove_all()
    wait_until(lambda: not host.remains(), what=lambda: f"gone: {host.remains()}")


@contextmanager
def installed_program() -> Iterator[Path]:
    """Install the CLI where every user may run it."""
    folder = Path(tempfile.mkdtemp(prefix="insula-test-cli-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        yield install_program(folder)
    finally:
        shutil.rmtree(folder)


class Running(subprocess.Popen[bytes]):
    """A command under way.  A test that fails within its block does not wait for it."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody who types `insula …` on a host."""

    name: str
    uid: int
    host: "Host"

    @property
    def tenant(self) -> str:
        return "root" if self.uid == 0 else f"uid{self.uid}"

    def begin(self, *words: str, **options: Any) -> Running:
        """Start a command and leave it running; options are Popen's."""
        pipes: dict[str, Any] = {
            "extra_groups": [], "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
            "env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm", "INSULA_DEBUG": "1"},
        }  # fmt: skip
        return Running(
            [str(self.host.program), "-H", f"unix://{self.host.socket_path}", *words],
            user=self.uid,
            group=GROUP_ID if self.uid else 0,
            cwd="/",
            **{**pipes, **options},
        )

    def give(self, *words: str, data: bytes = b"", deadline_s: float = DEADLINE_S) -> Done:
        """Give a command and wait for its end."""
        with self.begin(*words, stdin=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(data, timeout=deadline_s)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"insula {' '.join(words)} hangs: {out!r} {err!r}") from None
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def __call__(self, *words: str, data: bytes = b"", deadline_s: float = DEADLINE_S) -> str:
        """Give a command that has to succeed; returns what it printed, without the last line's end."""
        done = self.give(*words, data=data, deadline_s=deadline_s)
        assert done.code == 0, (words, done)
        return done.out.rstrip("\n")

    def fails(self, *words: str, data: bytes = b"", code: int = 1) -> str:
        """Give a command that has to fail with that exit code; returns what it said."""
        done = self.give(*words, data=data)
        assert done.code == code, (words, done)
        assert "Traceback" not in done.err, done.err
        return done.err

    def json(self, *words: str) -> Any:
        """Return what a command prints as JSON."""
        return json.loads(self(*words))

    def look(self, container: str) -> Any:
        """Return what is known of a container."""
        return self.json("inspect", container)[0]

    def wait_for(self, container: str, **fields: object) -> Any:
        """Wait until a container's record has these values; returns it."""
        seen: list[Any] = []

        def holds() -> bool:
            seen[:] = [self.look(container)]
            return all(seen[0][key] == value for key, value in fields.items())

        wait_until(holds, what=lambda: f"{container} has {fields}, it is {seen}")
        return seen[0]

    def ask(self, method: str, target: str, *, body: bytes = b"") -> tuple[int, Any]:
        """Send a request with the bytes given, for what the CLI would never send."""
        with self.asking(method, target, body=body) as connection:
            return answered(connection)

    def asking(self, method: str, target: str, *, body: bytes = b"") -> socket.socket:
        """Send a request and leave it open; `answered` reads what comes."""
        head = f"{method} {target} HTTP/1.1\r\nHost: insula\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with contextlib.ExitStack() as unless_said:
            connection = unless_said.enter_context(self.connected())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was said
                connection.sendall(head.encode() + body)
            unless_said.pop_all()
        return connection

    def connected(self) -> socket.socket:
        """Connect to the API and say nothing.  The kernel is asked who connects."""
        with contextlib.ExitStack() as unless_connected:
            connection = unless_connected.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(DEADLINE_S)
            with _IDENTITY:
                os.setegid(GROUP_ID)
                os.seteuid(self.uid)
                try:
                    wait_until(
                        lambda: _is_taken(connection, self.host.socket_path),
                        what="room among those who wait at the door",
                    )
                finally:
                    os.seteuid(0)
                    os.setegid(0)
            unless_connected.pop_all()
        return connection


def _is_taken(connection: socket.socket, path: Path) -> bool:
    """Connect; a socket with a time limit is told EAGAIN where another would wait: so many wait to be taken."""
    try:
        connection.connect(str(path))
    except BlockingIOError:
        return False
    return True


def charged_tenants(host: "Host", worker: str) -> set[str]:
    """The tenants of a host in whose cgroups a process of that module is."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if worker.encode() in each.read_bytes():
                words = (each.parent / "cgroup").read_text()
                if host.cgroup in words:
                    found |= {part for part in words.split("/") if part.startswith("tenant-")}
    return found


def answered(connection: socket.socket) -> tuple[int, Any]:
    """Wait for the answer to a request."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, rest = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(rest) if rest else None


@dataclass(kw_only=True)
class Host:
    """One host: namespace, folder, insulad."""

    folder: Path
    program: Path
    network: int
    cgroup: str
    daemon: "subprocess.Popen[bytes] | None" = None
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def socket_path(self) -> Path:
        return self.folder / "run/api.sock"

    @property
    def root(self) -> Person:
        return self.people["root"]

    @property
    def alice(self) -> Person:
        return self.people["alice"]

    @property
    def bob(self) -> Person:
        return self.people["bob"]

    def _words(self) -> list[str]:
        return [
            "nsenter", f"--net=/proc/{os.getpid()}/fd/{self.network}", "--",
            sys.executable, "-m", "insula.cli", "daemon", "--name", "solo", "--state", f"{self.folder}/state",
            "--run", f"{self.folder}/run", "--group", GROUP, "--cgroup-parent", self.cgroup, "--pool", POOL,
            "--rules", f"{self.folder}/rules.d", "--export", f"{self.folder}/export.toml",
        ]  # fmt: skip

    def prepare(self) -> None:
        """Make what insulad needs before it starts."""

    def start(self) -> None:
        """Start insulad and wait until it serves."""
        reading, writing = os.pipe()
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        with open(self.folder / "insulad.log", "ab") as log:
            self.daemon = subprocess.Popen(
                [*self._words(), "--ready-fd", str(writing)],
                pass_fds=[writing], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        os.close(writing)
        with open(reading, "rb") as ready:
            said = ready.read()
        if said != b"ready\n":
            self.kill()
            raise AssertionError(self.log())

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End insulad, the hard way if not told otherwise; containers are not its children."""
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait(timeout=DEADLINE_S)
            self.daemon = None

    def tear_down(self) -> None:
        """Take the host down by the product's own means."""
        self.kill(signal.SIGTERM)
        done = subprocess.run(
            [*self._words(), "--teardown"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def log(self) -> str:
        return (self.folder / "insulad.log").read_text(errors="replace")

    def remove_all(self) -> None:
        """Remove every container, volume and network of everybody.  Not by the CLI: it is done after each test."""
        for kind, key, more in (
            ("containers", "id", "&force=1&volumes=1"),
            ("volumes", "name", ""),
            ("networks", "name", ""),
        ):
            every = "&all=1" if kind == "containers" else ""
            status, things = self.root.ask("GET", f"/v1/{kind}?tenant=*{every}")
            assert status == 200, things
            for each in things:
                if kind == "networks" and each["name"] == "default":
                    continue
                target = f"/v1/{kind}/{each[key]}?tenant={each['tenant']}{more}"
                status, answer = self.root.ask("DELETE", target)
                assert status in (204, 404), answer

    def remains(self) -> list[str]:
        """Return what there is of containers: cgroups, interfaces, leases, folders, volumes."""
        groups = [
            each for each in found_below("/sys/fs/cgroup", f"**/{self.cgroup}/*/*") if os.path.isdir(each)
        ]
        with Route.in_namespace(self.network) as route:
            links = [link.name for link in route.links() if link.kind == "veth"]
        state = self.folder / "state"
        files = [path for place in ("containers", "volumes/*") for path in found_below(state, f"{place}/*")]
        return groups + links + files

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the host's network for as long as the block lasts."""
        with namespace_entered(self.network):
            yield

    def connect(self, address: str, port: int, *, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Connect from the host, as a program on it would."""
        with self.entered():
            connection = socket.socket(socket.AF_INET, kind)
        connection.settimeout(DEADLINE_S)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        return connection


def busybox_tar(*, extra: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    """Return a root file system with a static busybox and nothing else."""
    assert BUSYBOX.exists(), "Debian package busybox-static is missing: run scripts/setup"
    applets = subprocess.run(
        [str(BUSYBOX), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "root", "tmp", "var", "usr", "home"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        add_file(tar, "bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                add_link(tar, f"bin/{applet}", "busybox")
        add_file(tar, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nguest:x:1000:1000::/home:/bin/sh\n")
        add_file(tar, "etc/group", b"root:x:0:\nguest:x:1000:\n")
        add_file(tar, "etc/motd", b"not a program\n")
        if extra is not None:
            extra(tar)
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, data: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


@contextmanager
def host(program: Path, image: bytes, *, kind: type[Host] = Host) -> Iterator[Host]:
    """Start a host with image `box` for everybody; at the end nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="insula-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    network = netns.new_namespace()
    try:
        with Route.in_namespace(network) as route:
            route.set_up("lo")
        made = kind(folder=folder, program=program, network=network, cgroup=folder.name)
        made.people = {
            name: Person(name=name, uid=uid, host=made)
            for name, uid in (("root", 0), ("alice", ALICE_UID), ("bob", BOB_UID))
        }
        made.prepare()
        made.start()
        try:
            for person in made.people.values():
                person("image", "import", "-", "box", data=image)
                person("run", "--rm", "box", "true")
            yield made
            made.remove_all()
        finally:
            made.tear_down()
    finally:
        os.close(network)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)

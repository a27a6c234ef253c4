# SPDX-License-Identifier: Apache-2.0
"""A real spawner with its own run folder and cgroup parent, and containers that it starts from a tiny root file system.

The root is a static busybox; with `python=True` the interpreter that runs the tests is mounted into it, read-only.  Every
wait has a deadline.  Sources: `boot/protocol.py` for the messages, `model/stream.py` for the frames.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import insula
from insula.boot import protocol, stdio
from insula.boot.protocol import (
    AttachPlan,
    Failure,
    FilePlan,
    LimitsPlan,
    MountPlan,
    ProgramPlan,
    RootPlan,
    StartPlan,
)
from insula.kernel import caps
from insula.kernel.cgroup import Group, Hierarchies, delete_parent
from insula.kernel.cgroup.hierarchy import parse
from insula.model import stream
from waiting import DEADLINE_S, wait_until

UID_BASE = 0x21000000
BUSYBOX = Path("/bin/busybox")
PYTHON_PREFIX = Path(sys.base_prefix).resolve()
PYTHON = str(PYTHON_PREFIX / f"bin/python3.{sys.version_info.minor}")
_PROGRAM_FIELDS = {each.name for each in dataclasses.fields(ProgramPlan)}


class Refused(Exception):
    """The spawner answered with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.step}: {failure.message} ({failure.errno}, {failure.code})")
        self.failure = failure


def make_root(folder: Path) -> Path:
    """Make the root file system of the tests' containers, owned by their root."""
    assert BUSYBOX.exists(), "Debian package busybox-static is missing: run scripts/setup"
    folder.mkdir(mode=0o755)
    for name in ("bin", "etc", "proc", "sys", "dev", "root", "usr", "home", "var"):
        (folder / name).mkdir(mode=0o755)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    applets = subprocess.run(
        [str(BUSYBOX), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    for applet in applets:
        with contextlib.suppress(FileExistsError):
            (folder / "bin" / applet).symlink_to("busybox")
    for name in ("lib", "lib64"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
    (folder / "bin/no-program").write_text("text\n")
    (folder / "bin/no-interpreter").write_text("#!/no/such/interpreter\n")
    (folder / "bin/no-interpreter").chmod(0o755)
    shutil.copy("/usr/bin/tini-static", folder / "bin/tini")
    shutil.copy("/usr/bin/id", folder / "bin/setuid-id")
    (folder / "bin/setuid-id").chmod(0o4755)
    return folder


class Client:
    """A fake insulad: one connection to the spawner."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(DEADLINE_S)
            self._socket.connect(str(path))
            protocol.widen(self._socket)
        except OSError:
            self._socket.close()
            raise

    def ask(self, verb: str, *, descriptors: tuple[int, ...] = (), **body: object) -> dict[str, Any]:
        """Ask and wait for the answer.  Raises: Refused."""
        fields, received = self.ask_for_descriptors(verb, descriptors=descriptors, **body)
        assert not received
        return fields

    def ask_for_descriptors(
        self, verb: str, *, descriptors: tuple[int, ...] = (), **body: object
    ) -> tuple[dict[str, Any], list[int]]:
        self._number += 1
        request = {"id": self._number, "verb": verb, "body": body}
        protocol.send(self._socket, request, descriptors=descriptors)
        while True:
            message = self._receive()
            if message.fields.get("id") == self._number:
                break
        if "error" in message.fields:
            raise Refused(protocol.decode(Failure, message.fields["error"]))
        return message.fields["ok"], message.descriptors

    def _receive(self) -> protocol.Message:
        message = protocol.receive(self._socket)
        assert message.fields, "the spawner has gone"
        if "event" in message.fields:
            self.events.append(message.fields)
        return message

    def wait_exit(self, key: str) -> int:
        """Wait for the event that a container has ended; return its exit code."""
        while True:
            for event in self.events:
                if (event["event"], event["key"]) == ("exited", key):
                    return int(event["exit_code"])
            self._receive()

    def close(self) -> None:
        self._socket.close()


class Attached:
    """The client's end of an attached connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(DEADLINE_S)
        self.frames: list[tuple[int, bytes]] = []
        self._reader = stream.FrameReader()

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.connection.sendall(stream.frame(kind, payload))

    def type(self, data: bytes) -> None:
        self.send(stream.STDIN, data)

    def collected(self, kind: int = stream.STDOUT) -> bytes:
        return b"".join(payload for each, payload in self.frames if each == kind)

    def read(self) -> bool:
        """Read once; False at the end of the connection."""
        data = self.connection.recv(65536)
        self.frames += self._reader.feed(data)
        return bool(data)

    def read_until(self, word: bytes, *, kind: int = stream.STDOUT) -> bytes:
        """Read until the output holds a word; return all of it."""
        end = time.monotonic() + DEADLINE_S
        while word not in self.collected(kind):
            assert time.monotonic() < end and self.read(), f"no {word!r} in {self.frames!r}"
        return self.collected(kind)

    def wait_exit(self) -> int:
        """Read to the end; return what the EXIT frame says."""
        while self.read():
            pass
        assert self.frames and self.frames[-1][0] == stream.EXIT, self.frames[-3:]
        return int(json.loads(self.frames[-1][1])["exit_code"])

    def close(self) -> None:
        self.connection.close()


@dataclass
class Ended:
    """What a program did that ran to its end."""

    code: int
    out: str
    err: str


@dataclass
class Started:
    """A container that was started."""

    plan: StartPlan
    pid: int
    attached: Attached | None = None

    @property
    def key(self) -> str:
        return self.plan.key

    def records(self) -> list[tuple[float, int, bytes]]:
        """Read what of the log is there as a whole: time, stream, bytes."""
        data = Path(self.plan.log).read_bytes()
        found, at = [], 0
        while at + stdio.RECORD.size <= len(data):
            when, kind, length = stdio.RECORD.unpack_from(data, at)
            at += stdio.RECORD.size + length
            if at <= len(data):
                found.append((when, kind, data[at - length : at]))
        return found

    def logged(self, kind: int = stream.STDOUT) -> str:
        return b"".join(data for _, each, data in self.records() if each == kind).decode()


@dataclass
class Spawned:
    """The spawner of a test module, and the containers of the test in progress."""

    run: Path
    state: Path
    root: Path
    parent: str
    process: subprocess.Popen[bytes]
    client: Client
    started: list[Started] = field(default_factory=list)
    hierarchies: Hierarchies = field(init=False)
    _opened: list[Attached] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = Path(f"/proc/{self.process.pid}/cgroup").read_text()
        self.hierarchies = parse(Path("/proc/self/mountinfo").read_text(), own)

    def group(self, container: Started) -> Group:
        return Group(self.hierarchies, self.parent, container.key)

    def plan(self, *argv: str, python: bool = False, **changes: Any) -> StartPlan:
        """Build a plan; changes are fields of StartPlan or ProgramPlan."""
        key = uuid.uuid4().hex[:16]
        folder = self.state / key
        for name in ("upper", "work"):
            (folder / name).mkdir(parents=True, mode=0o755)
        mounts = tuple(changes.pop("mounts", ()))
        if python:
            prefixes = dict.fromkeys((Path("/usr"), PYTHON_PREFIX))
            mounts += tuple(_read_only(each) for each in prefixes)
        program = {name: changes.pop(name) for name in list(changes) if name in _PROGRAM_FIELDS}
        program.setdefault("environment", ())
        program.setdefault("capabilities", tuple(sorted(caps.DEFAULT)))
        lower = tuple(changes.pop("lower", (str(self.root),)))
        fields: dict[str, Any] = {
            "key": key,
            "uid_base": UID_BASE,
            "cgroup_parent": self.parent,
            "limits": LimitsPlan(),
            "root": RootPlan(
                lower=lower,
                upper=f"{folder}/upper",
                work=f"{folder}/work",
                read_only=changes.pop("read_only", False),
            ),
            "hostname": key,
            "program": ProgramPlan(argv=argv, **program),
            "log": f"{folder}/log",
            "files": (FilePlan(path="/etc/hostname", text=f"{key}\n"),),
            "mounts": mounts,
        }
        return StartPlan(**(fields | changes))

    def start(self, *argv: str, attach: bool = False, **changes: Any) -> Started:
        """Start a container.  Raises: Refused."""
        return self.start_plan(self.plan(*argv, **changes), attach=attach)

    def start_plan(self, plan: StartPlan, *, attach: bool = False) -> Started:
        container = Started(plan, 0)
        self.started.append(container)  # before the start: a failed one must leave nothing either
        if attach:
            answer, container.attached = self._ask_attached("start", plan=protocol.encode(plan))
        else:
            answer = self.client.ask("start", plan=protocol.encode(plan))
        container.pid = answer["pid"]
        return container

    def run_to_end(self, *argv: str, **changes: Any) -> Ended:
        """Start a container and wait for its end."""
        container = self.start(*argv, **changes)
        code = self.client.wait_exit(container.key)
        return Ended(code, container.logged(stream.STDOUT), container.logged(stream.STDERR))

    def run_shell(self, script: str, **changes: Any) -> Ended:
        return self.run_to_end("/bin/sh", "-c", script, **changes)

    def run_python(self, code: str, **changes: Any) -> Ended:
        return self.run_to_end(PYTHON, "-ISc", code, python=True, **changes)

    def execute(self, container: Started, *argv: str, **changes: Any) -> tuple[int, Attached]:
        """Run one more program.  Returns: its pid, the attached connection."""
        changes.setdefault("capabilities", container.plan.program.capabilities)
        program = ProgramPlan(argv=argv, environment=(), **changes)
        answer, attached = self._ask_attached(
            "execute", key=container.key, exec_key=uuid.uuid4().hex, program=protocol.encode(program)
        )
        return int(answer["pid"]), attached

    def execute_shell(self, container: Started, script: str, **changes: Any) -> Ended:
        _, attached = self.execute(container, "/bin/sh", "-c", script, **changes)
        code = attached.wait_exit()
        return Ended(code, attached.collected().decode(), attached.collected(stream.STDERR).decode())

    def attach(
        self, container: Started, *, preamble: str = "", hello: str = "", stdin: bool = True
    ) -> Attached:
        return self._ask_attached("attach", key=container.key, preamble=preamble, hello=hello, stdin=stdin)[1]

    def _ask_attached(
        self, verb: str, *, preamble: str = "", hello: str = "", stdin: bool = True, **body: object
    ) -> tuple[dict[str, Any], Attached]:
        ours, theirs = socket.socketpair()
        attached = Attached(ours)
        self._opened.append(attached)
        attach = protocol.encode(AttachPlan(preamble=preamble, hello=hello, stdin=stdin))
        with theirs:
            answer = self.client.ask(verb, descriptors=(theirs.fileno(),), attach=attach, **body)
        return answer, attached

    def signal(self, container: Started, number: int) -> None:
        self.client.ask("signal", key=container.key, signal=number)

    def end(self, container: Started) -> int:
        """Kill a container and wait for its end."""
        self.signal(container, signal.SIGKILL)
        return self.client.wait_exit(container.key)

    def held(self) -> dict[str, dict[str, Any]]:
        """Return what `hello` lists, by key."""
        return {each["key"]: each for each in self.client.ask("hello")["containers"]}

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Talk to the spawner; at the end nothing runs there."""
        self.reconnect()
        try:
            yield
        finally:
            self.reconnect()
            self.clear()
            self.client.close()

    def reconnect(self) -> None:
        self.client.close()
        self.client = Client(self.run / "spawner.sock")
        self.client.ask("hello")  # who is answered has been let in: it has its descriptor there

    def clear(self) -> None:
        """End and forget every container of the test; fail if one left its cgroup."""
        for attached in self._opened:
            attached.close()
        self._opened.clear()
        held = self.held()
        groups = [self.group(container) for container in self.started]
        for key, fields in held.items():
            if fields["exit_code"] is None:
                with contextlib.suppress(Refused):  # it has just ended
                    self.client.ask("signal", key=key, signal=int(signal.SIGKILL))
                self.client.wait_exit(key)
            self.client.ask("forget", key=key)
        self.started.clear()
        assert not self.held()
        left = [group for group in groups if group.exists()]
        for group in left:
            group.kill()
            group.delete(time.monotonic() + DEADLINE_S)
        assert not left, "a cgroup was left behind"


def _read_only(path: Path) -> MountPlan:
    return MountPlan(kind="bind", source=str(path), target=str(path), read_only=True)


@contextlib.contextmanager
def spawner(folder: Path) -> Iterator[Spawned]:
    """Start a spawner as `runtime/supervise.py` does; end it, and what it still holds, at the end."""
    run, state = folder / "run", folder / "state"
    run.mkdir(mode=0o755)
    state.mkdir(mode=0o700)
    source = str(Path(insula.__file__).resolve().parents[1])
    code = (
        f"import sys; sys.path.insert(0, {source!r}); from insula.boot.spawner import main; sys.exit(main())"
    )
    with (folder / "spawner.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-SI", "-c", code, str(run)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    made: list[Spawned] = []
    try:
        wait_until((run / "spawner.sock").exists, what="the spawner listens")
        client = _dial(run / "spawner.sock")
        parent = f"insula-test-{uuid.uuid4().hex[:8]}"
        made.append(Spawned(run, state, make_root(folder / "root"), parent, process, client))
        client.close()
        _make_parent(made[0])
        yield made[0]
    finally:
        _stop(process, made)
        for each in made:
            delete_parent(each.hierarchies, each.parent)


def _make_parent(host: Spawned) -> None:
    # So that it does not appear in the middle of the first test.
    group = Group(host.hierarchies, host.parent, "first")
    group.create()
    group.delete(time.monotonic() + DEADLINE_S)


def _dial(path: Path) -> Client:
    found: list[Client] = []

    def is_there() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            found.append(Client(path))
        return bool(found)

    wait_until(is_there, what="the spawner answers")
    return found[0]


def _stop(process: subprocess.Popen[bytes], made: list[Spawned]) -> None:
    try:
        if made and process.poll() is None:
            with made[0].connected():
                pass
            made[0].reconnect()
            made[0].client.ask("shutdown")
            made[0].client.close()
            process.wait(DEADLINE_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)


def status_of(pid: int | str) -> dict[str, str]:
    """Read /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_alive(pid: int) -> bool:
    """Answer whether a process runs: one that has ended and that nobody has reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False

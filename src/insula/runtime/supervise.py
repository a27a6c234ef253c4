# SPDX-License-Identifier: Apache-2.0
"""insulad's end of the talk with the spawner: start it if there is none, ask it, hear of containers that end.

Thread-safe: verbs run in many threads, one thread reads.  Source of the messages: `boot/protocol.py`.
"""

import contextlib
import itertools
import logging
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import insula
from insula.boot import protocol
from insula.boot.protocol import AttachPlan, Failure, ProgramPlan, StartPlan
from insula.kernel import descriptors, held_sockets
from insula.kernel.cgroup import Hierarchies
from insula.kernel.cgroup.hierarchy import parse
from insula.kernel.readable import wait_readable
from insula.model.errors import InsulaError, SpawnerGone
from insula.runtime.translate import from_failure

LOG = logging.getLogger(__name__)

READY_SECONDS = 60.0
ANSWER_SECONDS = 60.0
SEND_SECONDS = 10
"""For a spawner that does not read: one that was stopped."""

_TENANTS_SINCE = 3
"""Version of the protocol."""
AGAIN = "insulad starts another one: try again, else see its log"

Undo = tuple[str, Mapping[str, object]]
"""Verb and body that take back what was answered too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container's first process ended, or that it runs (exit_code None)."""

    key: str
    pid: int
    exit_code: int | None
    started_at: float
    ended_at: float
    reason: str = ""
    """Why the spawner killed it; empty if it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How far the memory of a restored container is filled: state is filling, filled or failed."""

    state: str
    memories: int = 0
    left_bytes: int = 0
    is_running: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Launched:
    """A CRIU process.  external: for a restore, external mount → path in CRIU's view."""

    pid: int
    external: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    fields: Mapping[str, Any]
    descriptors: Sequence[int]


@dataclass(slots=True)
class _Waiting:
    undo: Undo | None
    done: threading.Event = field(default_factory=threading.Event)
    answer: protocol.Message | None = None
    is_given_up: bool = False


class SpawnerClient:
    """The connection to a host's spawner."""

    def __init__(
        self,
        run: Path,
        *,
        log: Path,
        on_exit: Callable[[Exit], None],
        on_lost: Callable[[], None] = lambda: None,
        soft_descriptors: int | None = None,
    ) -> None:
        """on_lost: called in a thread of its own when the spawner has ended without being asked to.

        soft_descriptors: limit of a spawner that is started, and so of each program in a container; None: our own.
        """
        self._path = run / "spawner.sock"
        self._run = run
        self._log = log
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._soft_descriptors = soft_descriptors
        self._ends = False
        self._verbs: frozenset[str] = frozenset()
        self._version = protocol.VERSION
        self._connection: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._guard = threading.Lock()
        self._exits: queue.SimpleQueue[Exit | None] = queue.SimpleQueue()
        self._pid = 0
        self._engines: list[int] = []
        self._hierarchies: Hierarchies | None = None

    def connect(self) -> list[Exit]:
        """Reach the spawner, started if there is none.  Returns: what it holds, running and ended.

        Raises: SpawnerGone.
        """
        hello = self._begin()
        if int(hello.get("version", 1)) != protocol.VERSION:
            hello = self._replace(hello)
        self._pid = int(hello["pid"])
        self._version = int(hello.get("version", 1))
        self._verbs = frozenset(hello.get("verbs", ()))
        self._engines = [int(pid) for pid in hello.get("engines", ())]  # an older spawner has none
        # Read now: when the spawner has ended, its place is still asked for, to end what it left.
        mounts = Path("/proc/self/mountinfo").read_text()
        self._hierarchies = parse(mounts, Path(f"/proc/{self._pid}/cgroup").read_text())
        return [_exit_of(each) for each in hello["containers"]]

    def _begin(self) -> Mapping[str, Any]:
        try:
            self._connection = self._dial()
        except OSError:
            self._launch()
        self._ends = False
        self._reader = threading.Thread(target=self._read, name="spawner-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._tell_exits, name="spawner-exits", daemon=True).start()
        return self._ask("hello").fields

    def _replace(self, hello: Mapping[str, Any]) -> Mapping[str, Any]:
        """Start this insulad's own spawner in place of another version's, unless that one holds something."""
        if hello["containers"] or hello.get("engines"):
            LOG.warning(
                "a spawner of another version goes on, because it holds containers",
                extra={"fields": {"theirs": str(hello.get("version", 1)), "ours": str(protocol.VERSION)}},
            )
            return hello
        self._pid = int(hello["pid"])
        self.shutdown()
        if self._reader is not None:
            self._reader.join()
        return self._begin()

    def holds(self, key: str, pid: int) -> bool:
        """Tell whether the spawner of now has that run of a container, which may have ended and not be forgotten yet."""
        held = (_exit_of(each) for each in self._ask("hello").fields["containers"])
        return (key, pid) in ((each.key, each.pid) for each in held)

    @property
    def knows_tenants(self) -> bool:
        """Whether it can put containers into a group within a group: one that an older insulad has started cannot."""
        return self._version >= _TENANTS_SINCE

    def held(self) -> frozenset[int]:
        """Return the sockets that the spawner has, by their inodes."""
        return held_sockets.held(self._pid)

    def connections(self) -> Iterator[socket.socket]:
        """Yield a duplicate of each socket that the spawner has; the caller closes it."""
        return held_sockets.copies(self._pid)

    def streams(self) -> Mapping[int, str]:
        """Return into which container each of its connections leads: inode → key.  Empty: an older spawner."""
        known = self._ask("streams").fields if "streams" in self._verbs else {}
        return {int(inode): str(key) for inode, key in known.items()}

    def hang_up(self, inode: int) -> None:
        """Cut a connection that the spawner has; nothing happens if it has ended."""
        held_sockets.shut_down(self._pid, inode)

    def hierarchies(self) -> Hierarchies:
        """Return the cgroup hierarchies with the spawner's own place in them."""
        if self._hierarchies is None:
            raise SpawnerGone("cannot reach the spawner: there has been none yet", hint=AGAIN)
        return self._hierarchies

    def _dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(self._path))
            protocol.widen(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        except OSError:
            connection.close()
            raise
        return connection

    def _launch(self) -> None:
        root = str(Path(insula.__file__).resolve().parents[1])
        code = f"import sys; sys.path.insert(0, {root!r}); from insula.boot.spawner import main; sys.exit(main())"
        with open(self._log, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-SI", "-c", code, str(self._run)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        if self._soft_descriptors is not None:
            with contextlib.suppress(ProcessLookupError):  # its end is seen below
                descriptors.limit(child.pid, soft=self._soft_descriptors)
        threading.Thread(target=child.wait, name="spawner-reaper", daemon=True).start()
        deadline = time.monotonic() + READY_SECONDS
        waiting = threading.Event()
        while time.monotonic() < deadline and child.returncode is None:
            with contextlib.suppress(OSError):
                self._connection = self._dial()
                return
            waiting.wait(0.005)
        raise SpawnerGone(f"cannot start the spawner: see `{self._log}`")

    def _read(self) -> None:
        connection, is_greeted = self._connection, False
        while connection is not None:
            try:
                message = protocol.receive(connection)
            except (OSError, ValueError):
                message = protocol.Message({}, [])
            if not message.fields:
                break
            is_greeted = True
            if message.fields.get("event") == "exited":
                self._exits.put(_exit_of(message.fields))
                continue
            with self._guard:
                waiting = self._waiting.pop(int(message.fields.get("id") or 0), None)
                if waiting is not None:
                    waiting.answer = message
                    waiting.done.set()
            if waiting is None or waiting.is_given_up:
                self._take_back(connection, message, undo=waiting.undo if waiting is not None else None)
        with self._guard:
            abandoned, self._waiting = list(self._waiting.values()), {}
            is_ours = self._connection is connection
            if is_ours and connection is not None:  # else `close` has hung up
                connection.close()
                self._connection = None
        for each in abandoned:
            each.done.set()
        self._exits.put(None)
        # One that never said anything is for who connects to see (a child of a killed one may still hold its socket).
        if is_ours and is_greeted and not self._ends:
            LOG.error("the spawner has ended", extra={"fields": {"log": str(self._log)}})
            self._on_lost()

    def _take_back(self, connection: socket.socket, message: protocol.Message, *, undo: Undo | None) -> None:
        """What comes after its asker has given up is not wanted any more."""
        for descriptor in message.descriptors:
            os.close(descriptor)
        if undo is not None and "ok" in message.fields:
            verb, body = undo
            LOG.warning("an answer of the spawner came too late", extra={"fields": {"undone by": verb}})
            with self._guard, contextlib.suppress(OSError):  # one that has gone: its containers have ended
                protocol.send(connection, {"id": next(self._numbers), "verb": verb, "body": body})

    def _tell_exits(self) -> None:
        while (event := self._exits.get()) is not None:
            threading.Thread(
                target=self._on_exit, args=(event,), name=f"exit-{event.key[:12]}", daemon=True
            ).start()

    def _ask(
        self, verb: str, *, descriptors: Sequence[int] = (), undo: Undo | None = None, **body: object
    ) -> Answer:
        if self._verbs and verb not in self._verbs:
            message = f"cannot `{verb}`: the spawner, which an older insulad has started, does not know it"
            raise from_failure(Failure(step=verb, errno=0, message=message, code="unsupported"))
        number, waiting = next(self._numbers), _Waiting(undo)
        with self._guard:
            connection = self._connection
            if connection is None:
                raise SpawnerGone("cannot reach the spawner: it has ended", hint=AGAIN)
            self._waiting[number] = waiting
            try:
                protocol.send(connection, {"id": number, "verb": verb, "body": body}, descriptors=descriptors)
            except OSError as error:
                del self._waiting[number]
                raise SpawnerGone(f"cannot reach the spawner: {error.strerror}", hint=AGAIN) from error
        is_over = waiting.done.wait(ANSWER_SECONDS)
        with self._guard:
            waiting.is_given_up = waiting.answer is None
        if waiting.answer is None:
            why = "has ended" if is_over else "did not answer"
            raise SpawnerGone(f"cannot `{verb}`: the spawner {why}", hint=f"see `{self._log}`")
        fields, received = waiting.answer
        if "error" in fields:
            raise from_failure(protocol.decode(Failure, fields["error"]))
        return Answer(fields["ok"], received)

    def start(self, plan: StartPlan, *, attach: AttachPlan | None = None, connection: int = -1) -> int:
        """Start a container.  Returns: its pid.  Raises: StartFailed and what is below it."""
        undo = ("signal", {"key": plan.key, "signal": 9})
        return self._with_attach(
            "start", attach, connection=connection, undo=undo, plan=protocol.encode(plan)
        )

    def execute(
        self, key: str, plan: ProgramPlan, *, exec_key: str, attach: AttachPlan | None, connection: int = -1
    ) -> int:
        """Run one more program in a container.  Returns: its pid."""
        return self._with_attach(
            "execute",
            attach,
            connection=connection,
            undo=("signal", {"key": exec_key, "signal": 9}),
            key=key,
            exec_key=exec_key,
            program=protocol.encode(plan),
        )

    def _with_attach(
        self, verb: str, attach: AttachPlan | None, *, connection: int, undo: Undo, **body: object
    ) -> int:
        if attach is not None:
            body["attach"] = protocol.encode(attach)
        answer = self._ask(verb, descriptors=(connection,) if attach is not None else (), undo=undo, **body)
        return int(answer.fields["pid"])

    def attach(self, key: str, plan: AttachPlan, *, connection: int) -> None:
        """Give a connection the streams of a container."""
        self._ask("attach", descriptors=(connection,), key=key, attach=protocol.encode(plan))

    def resize(self, key: str, rows: int, *, columns: int) -> None:
        self._ask("resize", key=key, rows=rows, columns=columns)

    def signal(self, key: str, number: int) -> None:
        """Send a signal to a container's first process."""
        self._ask("signal", key=key, signal=number)

    def forget(self, key: str) -> bool:
        """Tell that an end was written down; its cgroups go.  Returns: False if it has not ended yet, as the spawner sees it."""
        return bool(self._ask("forget", key=key).fields["forgotten"])

    def view(self, plan: StartPlan) -> int:
        """Mount a stopped container's root file system, detached.  Returns: the mount's descriptor, the caller's."""
        return self._ask("view", plan=protocol.encode(plan)).descriptors[0]

    def launch_criu(
        self,
        argv: Sequence[str],
        *,
        rpc: int,
        images: int,
        extra: Sequence[int] = (),
        restore: StartPlan | None = None,
        page_maps: int = -1,
    ) -> Launched:
        """Start a CRIU process.

        page_maps: a mount of those that it is to see instead of the kernel's (`hidden.py`).
        """
        body: dict[str, Any] = {"argv": list(argv)}
        if page_maps >= 0:
            body["page_maps"] = True
            extra = (*extra, page_maps)
        if restore is not None:
            body["restore"] = protocol.encode(restore)
        fields = self._ask("criu", descriptors=(rpc, images, *extra), **body).fields
        return Launched(fields["pid"], fields["external"])

    def fill(
        self, key: str, *, images: int, store: int, slots: Mapping[int, int], is_later: bool = False
    ) -> None:
        """Begin to fill the memory of the container that is about to be restored into its room.

        is_later: the pages are still to come into the store (`supply`).
        """
        verb = "fill-later" if is_later else "fill"
        self._ask(verb, descriptors=(images, store), key=key, slots={str(pid): slots[pid] for pid in slots})

    @property
    def can_fill_later(self) -> bool:
        """Whether this spawner, which an older insulad may have started, can restore before any page is there."""
        return "fill-later" in self._verbs

    def supply(self, key: str) -> tuple[Mapping[int, int], Sequence[int]]:
        """Ask how absent pages are brought (`supply.py`).

        Returns: slots as of `fill`; the store and two links, the caller's; empty if none are absent.
        """
        if not self.can_fill_later:
            return {}, ()
        answer = self._ask("supply", key=key)
        return {int(pid): int(slot) for pid, slot in answer.fields["slots"].items()}, answer.descriptors

    def filling(self, key: str) -> tuple[Filling, int]:
        """Ask how far a container is filled.  Returns: that, and while it goes on a pidfd to wait by, the caller's; else -1."""
        if "filling" not in self._verbs:
            return Filling(state="filled"), -1  # an older spawner, which fills nothing
        answer = self._ask("filling", key=key)
        return Filling(**answer.fields), answer.descriptors[0] if answer.descriptors else -1

    def prepare(self, plan: StartPlan) -> None:
        """Make the room for a restore."""
        self._ask("prepare", undo=("discard", {"key": plan.key}), plan=protocol.encode(plan))

    def plug(self, key: str, pid: int) -> None:
        """Give the network namespace of a process in restore its interface."""
        self._ask("plug", key=key, pid=pid)

    def adopt(self, key: str, pid: int, *, terminal: int = -1) -> int:
        """Take a restored process as the container.  pid: 0 for what stands in its room.  Returns: its pid.

        Raises: StartFailed if there is none.
        """
        descriptors = (terminal,) if terminal >= 0 else ()
        return int(self._ask("adopt", descriptors=descriptors, key=key, pid=pid).fields["pid"])

    def wait_for_engines(self, *, seconds: float) -> bool:
        """Wait until the CRIU processes that an earlier insulad left have ended.  Returns: whether they have."""
        deadline = time.monotonic() + seconds
        for pid in self._engines:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if not wait_readable(pidfd, seconds=deadline - time.monotonic()):
                    return False
            finally:
                os.close(pidfd)
        return True

    def discard(self, key: str) -> None:
        """Tear a room down."""
        self._ask("discard", key=key)

    def shutdown(self) -> None:
        """End the spawner, and wait for its end.  Raises: StartFailed while containers run; SpawnerGone."""
        try:
            pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError as error:
            raise SpawnerGone("cannot reach the spawner: it has ended", hint=AGAIN) from error
        self._ends = True
        try:
            self._ask("shutdown")
            if not wait_readable(pidfd, seconds=READY_SECONDS):
                raise SpawnerGone("cannot end the spawner: it goes on", hint=f"see `{self._log}`")
        except InsulaError:
            self._ends = False
            raise
        finally:
            os.close(pidfd)

    def close(self) -> None:
        """Hang up; the spawner goes on."""
        with self._guard:
            self._ends = True
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _exit_of(fields: Mapping[str, Any]) -> Exit:
    code = fields["exit_code"]
    return Exit(
        key=str(fields["key"]),
        pid=int(fields["pid"]),
        exit_code=None if code is None else int(code),
        started_at=float(fields["started_at"]),
        ended_at=float(fields["ended_at"]),
        reason=str(fields.get("reason", "")),
    )

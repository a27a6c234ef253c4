# SPDX-License-Identifier: Apache-2.0
"""What the spawner holds: containers, the programs that were added to them, and how each ended.

A job is a process that is our child, with its pidfd and its streams.  A container is the job of its first process; it
stays here after its end until insulad has written the end down (`forget`).  Standard library only.
"""

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator

from insula.boot import build
from insula.boot.loop import EventLoop, Task, Wait, pause
from insula.boot.protocol import AttachPlan
from insula.boot.stdio import Stdio
from insula.kernel import mount, namespace
from insula.kernel.cgroup import Group, Hierarchies
from insula.model import stream

#: What has been written lately is shown to a connection that attaches after the program's end, too.
_NO_SUCH_PROCESS = 3

END_SECONDS = 2.0
"""For the end of a killed child, and of a cgroup; what lasts longer hangs in the kernel, and nobody waits for it."""
TURN_SECONDS = 10.0
"""For another request about the same container."""
_RETRY_SECONDS = 0.002
_STRAY_SECONDS = (0.05, 0.5, 3.0)

#: What CRIU keeps in /run, `kdat_save_cache` in criu/kerndat.c: written beside it, then renamed.
_CRIU_CACHE, _BLIND_CACHE = "criu.kdat", "blind.kdat"
_CACHE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Job:
    """One program that is our child."""

    def __init__(self, key: str, *, container: str, pid: int, pidfd: int, stdio: Stdio) -> None:
        """container: key of the one that it runs in."""
        self.key = key
        self.container = container
        self.pid = pid
        self.pidfd = pidfd
        self.stdio = stdio
        self.started_at = time.time()
        self.ended_at = 0.0
        self.exit_code: int | None = None

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def signal(self, number: int) -> None:
        """Send a signal to the process.  Raises: OSError ESRCH if it has ended."""
        if not self.alive:
            raise ProcessLookupError(_NO_SUCH_PROCESS, "pidfd_send_signal: the process has ended")
        signal.pidfd_send_signal(self.pidfd, number)

    def attach(self, plan: AttachPlan, descriptor: int) -> None:
        """Give a connection the program's streams; we own the descriptor from now on."""
        connection = socket.socket(fileno=descriptor)
        first = plan.preamble.encode("latin-1")
        if plan.hello:
            first += stream.frame(stream.HELLO, plan.hello.encode())
        self.stdio.attach(connection, with_stdin=plan.stdin, first=first)
        if not self.alive:
            self.stdio.finish(self._last_frame())

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.ended_at = time.time()
        os.close(self.pidfd)
        self.stdio.finish(self._last_frame())

    def _last_frame(self) -> bytes:
        return stream.frame(stream.EXIT, json.dumps({"exit_code": self.exit_code}).encode())


class Container(Job):
    """The first process of a container, with its cgroup."""

    def __init__(self, key: str, *, pid: int, pidfd: int, stdio: Stdio, group: Group, uid_base: int) -> None:
        super().__init__(key, container=key, pid=pid, pidfd=pidfd, stdio=stdio)
        self.group = group
        self.uid_base = uid_base

    def describe(self) -> dict[str, object]:
        """Say what insulad must know."""
        return {
            "key": self.key,
            "pid": self.pid,
            "exit_code": self.exit_code,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }


class Host:
    """All that the spawner knows."""

    def __init__(self, loop: EventLoop, *, run_folder: str, on_exit: Callable[[Container], None]) -> None:
        self.loop = loop
        self.run_folder = run_folder
        self.started = time.time()
        self.containers: dict[str, Container] = {}
        self.jobs: dict[str, Job] = {}
        self.maps = build.IdMaps()
        self.hierarchies = Hierarchies.detect()
        self.stage = f"{run_folder}/stage"
        os.makedirs(self.stage, mode=0o700, exist_ok=True)
        self._on_exit = on_exit
        self._busy: set[str] = set()
        self._births = 0
        self.engines: set[int] = set()
        self.fillers: set[int] = set()
        self.engine_run = -1
        """The tmpfs that the last CRIU got as /run."""
        self._engine_caches: dict[str, bytes] = {}
        self._engine_cache = _CRIU_CACHE

    def get(self, key: str) -> Container | Job:
        """Return a container or an added program.  Raises: KeyError."""
        return self.containers.get(key) or self.jobs[key]

    def get_container(self, key: str) -> Container:
        return self.containers[key]

    def streams(self) -> dict[int, str]:
        """Return the connections that have a program's streams, by inode, and the key of the container that it runs in."""
        jobs = (*self.containers.values(), *self.jobs.values())
        return {each.inode: job.container for job in jobs for each in job.stdio.attached}

    def refuse_living(self, key: str) -> None:
        """Raise OSError EEXIST if a container of that key runs."""
        known = self.containers.get(key)
        if known is not None and known.alive:
            raise FileExistsError(17, "it runs already", key[:12])

    def add(self, job: Job) -> None:
        """Keep a job and watch for its end.  Raises: OSError EEXIST if a container of that key lives: never two."""
        if isinstance(job, Container):
            self.refuse_living(job.key)
            self.containers[job.key] = job
        else:
            self.jobs[job.key] = job
        self.loop.watch(job.pidfd, selectors.EVENT_READ, lambda _events: self._ended(job))

    def _ended(self, job: Job) -> None:
        found = os.waitid(os.P_PIDFD, job.pidfd, os.WEXITED | os.WNOHANG)
        if found is None:
            return
        self.loop.unwatch(job.pidfd)
        killed = found.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        job.end(128 + found.si_status if killed else found.si_status)
        if isinstance(job, Container):
            self._on_exit(job)
        else:
            del self.jobs[job.key]

    def watch_engine(self, born: namespace.Child) -> None:
        """Wait for a CRIU process, whose outcome insulad hears by its RPC."""

        def ended(_events: int) -> None:
            if os.waitid(os.P_PIDFD, born.pidfd, os.WEXITED | os.WNOHANG) is not None:
                self.loop.unwatch(born.pidfd)
                os.close(born.pidfd)
                self.engines.discard(born.pid)
                self.reap_strays()

        self.engines.add(born.pid)
        self.loop.watch(born.pidfd, selectors.EVENT_READ, ended)

    def take(self, key: str) -> Task[None]:
        """Wait until no other request changes a container.  Undo: `release`.  Raises: OSError EBUSY."""
        deadline = time.monotonic() + TURN_SECONDS
        while key in self._busy:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "it is being started or removed", key[:12])
            yield pause(_RETRY_SECONDS)
        self._busy.add(key)

    def release(self, key: str) -> None:
        self._busy.discard(key)

    @contextlib.contextmanager
    def birth(self) -> Iterator[None]:
        """Leave our children alone meanwhile: one of them may be a birth's, and not be known yet."""
        self._births += 1
        try:
            yield
        finally:
            self._births -= 1

    @property
    def is_at_rest(self) -> bool:
        """Tell whether nothing is being born or removed."""
        return not self._births and not self._busy

    def end_child(self, born: namespace.Child) -> Task[None]:
        """Kill a child of ours and take its end; one that does not end is waited for by the loop."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(born.pidfd, signal.SIGKILL)
        if not (yield Wait(born.pidfd, time.monotonic() + END_SECONDS)):
            self.loop.watch(born.pidfd, selectors.EVENT_READ, lambda _events: self._take_end(born))
            return
        self._take_end(born)

    def _take_end(self, born: namespace.Child) -> None:
        self.loop.unwatch(born.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, born.pidfd, os.WEXITED | os.WNOHANG)
        os.close(born.pidfd)

    def delete_group(self, group: Group) -> Task[None]:
        """Remove a container's cgroups as soon as the kernel counts nobody in them."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            try:
                group.delete(0.0)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
            yield pause(_RETRY_SECONDS)

    def reap_strays_soon(self) -> None:
        """Take the dead as below, in a while: a birth has failed, and what it had begun is ending."""
        for seconds in _STRAY_SECONDS:
            self.loop.call_at(time.monotonic() + seconds, self.reap_strays)

    def reap_strays(self) -> None:
        """Take the dead that nobody else waits for: what a restore that failed had made as our children."""
        if self._births:
            self.loop.call_at(time.monotonic() + _STRAY_SECONDS[-1], self.reap_strays)
            return
        known = {each.pid for each in (*self.containers.values(), *self.jobs.values()) if each.alive}
        for pid in child_pids() - known - self.engines - self.fillers:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def renew_engine_run(self, *, blind: bool = False) -> None:
        """Make the tmpfs that the next CRIU sees as /run; what the last one learned of the kernel is in it.

        blind: the next one is to know no PAGEMAP_SCAN (`engine.py`).
        Each has its own, since kernels before 6.15 neither clone a detached mount nor attach one twice.
        """
        made = mount.tmpfs(mode=0o755, source="criu", size_bytes=16 << 20)
        try:
            if self.engine_run >= 0 and (known := _read_at(self.engine_run, self._engine_cache)):
                self._engine_caches[self._engine_cache] = known
            self._engine_cache = _BLIND_CACHE if blind else _CRIU_CACHE
            if known := self._engine_caches.get(self._engine_cache, b""):
                with open(os.open(self._engine_cache, _CACHE_FLAGS, 0o600, dir_fd=made), "wb") as file:
                    file.write(known)
        except OSError:
            os.close(made)
            raise
        if self.engine_run >= 0:
            os.close(self.engine_run)
        self.engine_run = made

    def forget(self, key: str) -> Task[bool]:
        """Let go of an ended container.  One that runs is kept.  Returns: whether there is none now."""
        container = self.containers.get(key)
        if container is None:
            return True
        if container.alive:
            return False
        del self.containers[key]
        yield from self.delete_group(container.group)
        return True


def _read_at(folder: int, name: str) -> bytes:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def child_pids() -> set[int]:
    """Return our children.  Source: proc_pid_task_tid_children(5), of a process with one thread."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {int(word) for word in file.read().split()}

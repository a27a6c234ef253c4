# SPDX-License-Identifier: Apache-2.0
"""insula-spawner: the parent of every container of a host.

One single-threaded process, started once by insulad with `python -SI`, that goes on when insulad is restarted, killed
or upgraded.  It forks the first process of each container, keeps its exit code, the outer ends of its standard
streams, and the log; it decides nothing.  What is said between the two stands in `protocol.py`.

All mounts of a container are made detached and attached in its own mount namespace: none is ever seen on the host, and
all of them vanish with it.  Standard library only.
"""

import contextlib
import errno
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from insula.boot import birth, counts, engine, filling, oom, protocol
from insula.boot.birth import Answer
from insula.boot.jobs import Container, Host, Job
from insula.boot.loop import EventLoop, Task, log
from insula.boot.peer import Peer
from insula.boot.protocol import AttachPlan, Failure, StartPlan, decode
from insula.kernel import keyring

_T = TypeVar("_T")

#: A verb answers at once, or as a task.
Handler = Callable[[dict[str, Any], list[int]], Answer | Task[Answer]]


class Spawner:
    """Requests in, answers and events out."""

    def __init__(self, run_folder: str) -> None:
        self._loop = EventLoop()
        self._peers: list[Peer] = []
        self._stops = False
        self.host = Host(self._loop, run_folder=run_folder, on_exit=self._report_exit)
        self._verbs: dict[str, Handler] = {
            "hello": self._hello,
            "start": self._start,
            "execute": self._execute,
            "attach": self._attach,
            "streams": self._streams,
            "resize": self._resize,
            "signal": self._signal,
            "forget": self._forget,
            "criu": self._criu,
            "prepare": self._prepare,
            "plug": self._plug,
            "adopt": self._adopt,
            "discard": self._discard,
            "fill": self._fill,
            "fill-later": self._fill_later,
            "supply": self._supply,
            "filling": self._filling,
            "view": self._view,
            "shutdown": self._shutdown,
        }

    def serve(self, listener: socket.socket) -> None:
        """Serve until `shutdown`."""
        listener.setblocking(False)
        self._loop.watch(listener.fileno(), selectors.EVENT_READ, lambda _events: self._accept(listener))
        while not self._stops:
            self._loop.run_once()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except (
            OSError
        ) as error:  # the client has gone again, or descriptors have run out: later ones are served
            log(f"accept failed: {error}", descriptor=listener.fileno())
            return
        protocol.widen(connection)
        self._peers.append(
            Peer(self._loop, connection, on_request=self._begin, on_end=lambda peer: self._peers.remove(peer))
        )

    def _begin(self, peer: Peer, message: protocol.Message) -> None:
        self._loop.begin(self._serve(peer, message))

    def _serve(self, peer: Peer, message: protocol.Message) -> Task[None]:
        fields, descriptors = message
        answer: dict[str, object] = {"id": fields.get("id")}
        passed: list[int] = []
        try:
            result = self._find(fields["verb"])(fields.get("body", {}), descriptors)
            if not isinstance(result, tuple):
                result = yield from result
            answer["ok"], passed = result
        except birth.BirthFailed as error:
            answer["error"] = protocol.encode(error.failure)
        except protocol.UnknownField as error:
            answer["error"] = protocol.encode(_unknown(f"`{error}`"))
        except Exception as error:  # noqa: BLE001  whatever a request asks for, the containers' parent stays
            step, number = str(fields.get("verb")), getattr(error, "errno", 0) or 0
            answer["error"] = protocol.encode(Failure(step=step, errno=number, message=f"{error}"))
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        if not peer.is_open and "ok" in answer:
            self._end_unheard(fields)
        peer.send(answer, descriptors=passed)

    def _find(self, verb: str) -> Handler:
        if verb not in self._verbs:
            raise birth.BirthFailed(_unknown(f"the verb `{verb}`"))
        return self._verbs[verb]

    def _end_unheard(self, fields: dict[str, Any]) -> None:
        """End what was born for an insulad that has gone meanwhile: the next one may have asked who lives before."""
        body = fields.get("body", {})
        key = {"start": body.get("plan", {}).get("key"), "execute": body.get("exec_key")}.get(fields["verb"])
        if key is not None:
            with contextlib.suppress(KeyError, OSError):
                self.host.get(key).signal(signal.SIGKILL)

    def _report_exit(self, container: Container) -> None:
        for peer in list(self._peers):
            peer.send({"event": "exited", **container.describe(), "reason": filling.reason_of(container.key)})

    def _hello(self, _body: dict[str, Any], _descriptors: list[int]) -> Answer:
        containers = [each.describe() for each in self.host.containers.values()]
        return {
            "pid": os.getpid(),
            "version": protocol.VERSION,
            "verbs": sorted(self._verbs),
            "containers": containers,
            "engines": sorted(self.host.engines),
            "started": self.host.started,
        }, []

    def _alone(self, key: str, task: Task[_T]) -> Task[_T]:
        """Run a task while no other changes the same container."""
        yield from self.host.take(key)
        try:
            with self.host.birth():
                return (yield from task)
        finally:
            self.host.release(key)

    def _start(self, body: dict[str, Any], descriptors: list[int]) -> Task[Answer]:
        plan = decode(StartPlan, body["plan"])
        container = yield from self._alone(plan.key, birth.start(self.host, plan))
        self._attach_first(container, body, descriptors)
        return {"pid": container.pid}, []

    def _attach_first(self, job: Job, body: dict[str, Any], descriptors: list[int]) -> None:
        if descriptors:
            job.attach(decode(AttachPlan, body["attach"]), os.dup(descriptors[0]))

    def _execute(self, body: dict[str, Any], descriptors: list[int]) -> Task[Answer]:
        container = self.host.get_container(body["key"])
        program = decode(protocol.ProgramPlan, body["program"])
        with self.host.birth():
            job = yield from birth.execute(self.host, container, program, key=body["exec_key"])
        self._attach_first(job, body, descriptors)
        return {"pid": job.pid}, []

    def _attach(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).attach(decode(AttachPlan, body["attach"]), os.dup(descriptors[0]))
        return {}, []

    def _streams(self, _body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return {str(inode): key for inode, key in self.host.streams().items()}, []

    def _resize(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).stdio.resize(body["rows"], columns=body["columns"])
        return {}, []

    def _signal(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).signal(body["signal"])
        return {}, []

    def _forget(self, body: dict[str, Any], _descriptors: list[int]) -> Task[Answer]:
        forgotten = yield from self._alone(body["key"], self.host.forget(body["key"]))
        if forgotten:
            filling.stop(body["key"])
        return {"forgotten": forgotten}, []

    def _criu(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        return engine.launch(self.host, body, descriptors)

    def _prepare(self, body: dict[str, Any], _descriptors: list[int]) -> Task[Answer]:
        plan = decode(StartPlan, body["plan"])
        yield from self._alone(plan.key, engine.prepare(self.host, plan))
        return {}, []

    def _plug(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        engine.plug(self.host, body["key"], pid=body["pid"])
        return {}, []

    def _adopt(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        terminal = os.dup(descriptors[0]) if descriptors else -1
        container = engine.adopt(self.host, body["key"], pid=body["pid"], terminal=terminal)
        return {"pid": container.pid}, []

    def _discard(self, body: dict[str, Any], _descriptors: list[int]) -> Task[Answer]:
        filling.stop(body["key"])
        yield from self._alone(body["key"], engine.discard(self.host, body["key"]))
        return {}, []

    def _fill(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        return filling.fill(self.host, body, descriptors)

    def _fill_later(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        return filling.fill_later(self.host, body, descriptors)

    def _supply(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return filling.supply(body["key"])

    def _filling(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return filling.describe(body["key"])

    def _view(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return {}, [birth.view(self.host, decode(StartPlan, body["plan"]))]

    def _shutdown(self, _body: dict[str, Any], _descriptors: list[int]) -> Answer:
        alive = [each.key for each in self.host.containers.values() if each.alive]
        if alive:
            raise OSError(16, f"{len(alive)} containers still run")
        if not self.host.is_at_rest:
            raise OSError(16, "a container is being started or removed")
        self._stops = True
        return {}, []


def _unknown(what: str) -> Failure:
    message = f"the spawner, which an older insulad has started, does not know {what}"
    return Failure(step="request", errno=errno.ENOSYS, message=message, code="unsupported")


def listen(path: str) -> socket.socket:
    """Listen at a path, whose folder only root may enter.  Replaces a socket that nobody serves any more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o177)
    listener.bind(path)
    os.umask(before)
    listener.listen(8)
    return listener


def main() -> int:
    """Serve on RUN/spawner.sock.  argv: the run folder; standard error is the spawner's log."""
    run_folder = sys.argv[1]
    with contextlib.suppress(PermissionError):  # already the leader of a session
        os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o022)
    keyring.join_new_session()  # not that of whoever started it; children, who have one by this, always get another
    oom.go_last()
    if refused := counts.prepare():
        log(f"cannot raise what is counted for all containers together: {' '.join(refused)}")
    listener = listen(f"{run_folder}/spawner.sock")
    log("spawner ready", pid=os.getpid())
    Spawner(run_folder).serve(listener)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{run_folder}/spawner.sock")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""insula-spawner: the parent of every container of a host.

One single-threaded process, started once by insulad with `python -SI`, that goes on when insulad is restarted, killed
or upgraded.  It forks the first process of each container, keeps its exit code, the outer ends of its standard
streams, and the log; it decides nothing.  What is said between the two stands in `protocol.py`.

All mounts of a container are made detached and attached in its own mount namespace: none is ever seen on the host, and
all of them vanish with it.  Standard library only.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from insula.boot import birth, engine, protocol
from insula.boot.birth import Answer
from insula.boot.jobs import Container, Host
from insula.boot.protocol import AttachPlan, Failure, StartPlan, decode


def log(message: str, **numbers: int) -> None:
    """Write one line to the spawner's log."""
    with contextlib.suppress(OSError):
        print(json.dumps({"at": time.time(), "message": message, **numbers}), file=sys.stderr, flush=True)


class EventLoop:
    """Descriptors and who handles them: the `Loop` of `stdio.py`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back when a descriptor is ready; replaces what was watched before."""
        try:
            self._selector.modify(descriptor, events, callback)
        except KeyError:
            self._selector.register(descriptor, events, callback)

    def unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)

    def run_once(self) -> None:
        for key, events in self._selector.select():
            # An earlier callback of the same round may have closed this descriptor.
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                self._call(key.fd, key.data, events=events)

    def _call(self, descriptor: int, callback: Callable[[int], None], *, events: int) -> None:
        try:
            callback(events)
        except Exception as error:  # noqa: BLE001  one container's trouble must not end the parent of all
            log(f"callback failed: {error!r}", descriptor=descriptor)
            self.unwatch(descriptor)


class Spawner:
    """Requests in, answers and events out."""

    def __init__(self, run_folder: str) -> None:
        self._loop = EventLoop()
        self._clients: list[socket.socket] = []
        self._stops = False
        self.host = Host(self._loop, run_folder=run_folder, on_exit=self._report_exit)
        self._verbs: dict[str, Callable[[dict[str, Any], list[int]], Answer]] = {
            "hello": self._hello,
            "start": self._start,
            "execute": self._execute,
            "attach": self._attach,
            "resize": self._resize,
            "signal": self._signal,
            "forget": self._forget,
            "criu": self._criu,
            "prepare": self._prepare,
            "plug": self._plug,
            "adopt": self._adopt,
            "discard": self._discard,
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
        self._clients.append(connection)
        self._loop.watch(connection.fileno(), selectors.EVENT_READ, lambda _events: self._request(connection))

    def _request(self, connection: socket.socket) -> None:
        try:
            fields, descriptors = protocol.receive(connection)
        except (OSError, ValueError):
            fields, descriptors = {}, []
        if not fields:
            self._drop(connection)
            return
        answer: dict[str, object] = {"id": fields.get("id")}
        passed: list[int] = []
        try:
            result, passed = self._verbs[fields["verb"]](fields.get("body", {}), descriptors)
            answer["ok"] = result
        except birth.BirthFailed as error:
            answer["error"] = protocol.encode(error.failure)
        except Exception as error:  # noqa: BLE001  whatever a request asks for, the containers' parent stays
            step, number = str(fields.get("verb")), getattr(error, "errno", 0) or 0
            answer["error"] = protocol.encode(Failure(step=step, errno=number, message=f"{error}"))
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        try:
            protocol.send(connection, answer, descriptors=passed)
        except OSError:
            self._drop(connection)
        for descriptor in passed:
            os.close(descriptor)

    def _drop(self, connection: socket.socket) -> None:
        if connection in self._clients:
            self._clients.remove(connection)
        self._loop.unwatch(connection.fileno())
        connection.close()

    def _report_exit(self, container: Container) -> None:
        for connection in list(self._clients):
            try:
                protocol.send(connection, {"event": "exited", **container.describe()})
            except OSError:
                self._drop(connection)

    def _hello(self, _body: dict[str, Any], _descriptors: list[int]) -> Answer:
        containers = [each.describe() for each in self.host.containers.values()]
        return {
            "pid": os.getpid(),
            "containers": containers,
            "engines": sorted(self.host.engines),
            "started": self.host.started,
        }, []

    def _start(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        plan = decode(StartPlan, body["plan"])
        container = birth.start(self.host, plan)
        self._attach_first(container, body, descriptors)
        return {"pid": container.pid}, []

    def _attach_first(self, container: Container, body: dict[str, Any], descriptors: list[int]) -> None:
        if descriptors:
            container.attach(decode(AttachPlan, body["attach"]), os.dup(descriptors[0]))

    def _execute(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        container = self.host.get_container(body["key"])
        program = decode(protocol.ProgramPlan, body["program"])
        job = birth.execute(self.host, container, program, key=body["exec_key"])
        if descriptors:
            job.attach(decode(AttachPlan, body["attach"]), os.dup(descriptors[0]))
        return {"pid": job.pid}, []

    def _attach(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).attach(decode(AttachPlan, body["attach"]), os.dup(descriptors[0]))
        return {}, []

    def _resize(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).stdio.resize(body["rows"], columns=body["columns"])
        return {}, []

    def _signal(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        self.host.get(body["key"]).signal(body["signal"])
        return {}, []

    def _forget(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return {"forgotten": self.host.forget(body["key"])}, []

    def _criu(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        return engine.launch(self.host, body, descriptors)

    def _prepare(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return engine.prepare(self.host, decode(StartPlan, body["plan"])), []

    def _plug(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        engine.plug(self.host, body["key"], pid=body["pid"])
        return {}, []

    def _adopt(self, body: dict[str, Any], descriptors: list[int]) -> Answer:
        terminal = os.dup(descriptors[0]) if descriptors else -1
        container = engine.adopt(self.host, body["key"], pid=body["pid"], terminal=terminal)
        return {"pid": container.pid}, []

    def _discard(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        engine.discard(self.host, body["key"])
        return {}, []

    def _view(self, body: dict[str, Any], _descriptors: list[int]) -> Answer:
        return {}, [birth.view(self.host, decode(StartPlan, body["plan"]))]

    def _shutdown(self, _body: dict[str, Any], _descriptors: list[int]) -> Answer:
        alive = [each.key for each in self.host.containers.values() if each.alive]
        if alive:
            raise OSError(16, f"{len(alive)} containers still run")
        self._stops = True
        return {}, []


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
    listener = listen(f"{run_folder}/spawner.sock")
    log("spawner ready", pid=os.getpid())
    Spawner(run_folder).serve(listener)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{run_folder}/spawner.sock")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Two paired hosts on this machine (those of the demo), a program that keeps every kind of state, and its client.

The program runs in a container of the image `host` and executes Python that is sent to it, in one long-lived process, so
that a test can make any kind of state and look at it again after a checkpoint or a move.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from demo import cleanup, hosts
from demo.check import python_of_host
from demo.hosts import Host, Lan, World

from insula.client.http import Client
from insula.client.operations import failure, follow
from insula.kernel.netlink import Route, namespace_entered
from insula.network.bridge import interface_name
from insula.runtime.fault import VARIABLE
from waiting import DEADLINE_S

TENANT = "root"
LAN = Lan(name="lan1", tenant=TENANT, prefix="10.99.1")
PORT = 7000
#: Executes what it is sent; `count` is answered by the next number.
SERVER = """
import json, os, socket, sys, threading, traceback
count = 0
lock = threading.Lock()

def serve(connection):
    global count
    file = connection.makefile("rwb")
    for line in file:
        if line == b"count\\n":
            with lock:
                count += 1
                answer = count
        else:
            try:
                exec(json.loads(line), globals())
                answer = globals().pop("answer", None)
            except BaseException:
                answer = traceback.format_exc()
        file.write(json.dumps(answer).encode() + b"\\n")
        file.flush()

listener = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""
#: Before SERVER: opens a file with the next number in its name as often as it can.
COUNTING = """
import threading, os, itertools, select
def count():
    for number in itertools.count():
        try: os.open(f"/insula-none/{number}", os.O_RDONLY)
        except FileNotFoundError: pass
        select.select([], [], [], 0.001)
threading.Thread(target=count, daemon=True).start()
"""


class Conversation:
    """One TCP connection to the program, from outside of the hosts."""

    def __init__(self, world: World, address: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with namespace_entered(world.outside):
                    self._socket = socket.create_connection((address, PORT), timeout=DEADLINE_S)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                threading.Event().wait(0.02)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def hang_up(self) -> None:
        """Wake who waits for an answer."""
        with suppress(OSError):  # it has hung up already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def count(self) -> int:
        self._socket.sendall(b"count\n")
        return int(self._file.readline())

    def run(self, source: str) -> Any:
        """Execute in the program; returns what it assigned to `answer`, or the text of its traceback."""
        self._socket.sendall(json.dumps(source).encode() + b"\n")
        return json.loads(self._file.readline())


class Counter(threading.Thread):
    """Counts as fast as it can on one connection, and checks every answer."""

    def __init__(self, world: World, address: str) -> None:
        super().__init__(daemon=True)
        self._conversation = Conversation(world, address)
        self._over = threading.Event()
        self.answers = 0
        self.problem = ""
        self.longest_gap_s = 0.0
        self.start()

    def run(self) -> None:
        expected, since = 1, time.monotonic()
        try:
            while not self._over.is_set():
                found = self._conversation.count()
                now = time.monotonic()
                self.longest_gap_s, since = max(self.longest_gap_s, now - since), now
                if found != expected:
                    raise ValueError(f"got {found} instead of {expected}")
                expected += 1
                self.answers += 1
        except (OSError, ValueError) as error:
            self.problem = f"{type(error).__name__}: {error}"

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until it got so many answers from now on: the program runs and is heard."""
        wanted = self.answers + count
        assert wait_until(lambda: self.answers >= wanted or bool(self.problem)), "no answer any more"
        assert not self.problem, self.problem

    def abandon(self) -> None:
        """End it, whatever it heard: its program is gone, or another one answers now."""
        self._over.set()
        self._conversation.hang_up()
        self.join()
        self._conversation.close()

    def finish(self) -> int:
        """End it; returns how many answers it got, all of them right."""
        self._over.set()
        self.join()
        self._conversation.close()
        assert not self.problem, self.problem
        return self.answers


def wait_until(condition: Callable[[], bool], *, seconds: float = DEADLINE_S) -> bool:
    return cleanup.wait_until(condition, deadline_s=seconds)


@dataclass
class Pair:
    """Alpha and beta, and shorthands for what tests do to them."""

    world: World
    faulty: set[str] = field(default_factory=set)
    """Hosts whose insulad has a wish for a fault."""
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10, 250)))

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    def client(self, name: str) -> Client:
        return self.world.hosts[name].client()

    def run(self, name: str, *, host: str = "alpha", program: str = SERVER, **spec: object) -> str:
        """Start the program (or another) in a container of that name; returns its address."""
        address = LAN.address(next(self.numbers))
        body = {"image": "host", "name": name, "network": "lan", "address": address, "user": "0"}
        body |= {"command": [python_of_host(), "-c", program], **spec}
        self.client(host).call("POST", "/v1/containers", body=body)
        self.client(host).call("POST", f"/v1/containers/{name}/start")
        return address

    def act(self, host: str, container: str, verb: str, /, **wish: object) -> dict[str, Any]:
        """Do a long action; returns its result.  Raises: what it failed with."""
        client = self.client(host)
        operation = client.call("POST", f"/v1/containers/{container}/{verb}", body=wish)
        *_, last = follow(client, operation)
        if error := failure(last):
            raise error
        return dict(last["result"])

    def migrate(self, name: str, source: str, target: str) -> dict[str, Any]:
        return self.act(source, name, "migrate", target=target)

    def find(self, host: str, name: str) -> dict[str, Any] | None:
        for each in self.client(host).get("/v1/containers", {"all": "1", "tenant": "*"}):
            if each["name"] == name and each["tenant"] == TENANT:
                return dict(each)
        return None

    def status(self, host: str, name: str) -> str:
        found = self.find(host, name)
        return str(found["status"]) if found else ""

    def remove(self, name: str) -> None:
        for host in self.world.hosts:
            if self.find(host, name):
                query = {"force": "1", "volumes": "1"}
                self.client(host).call("DELETE", f"/v1/containers/{name}", query=query)
            for volume in self._unused_volumes(host):
                self.client(host).call("DELETE", f"/v1/volumes/{volume['name']}")

    def _unused_volumes(self, host: str) -> list[dict[str, Any]]:
        containers = self.client(host).get("/v1/containers", {"all": "1"})
        used = {each["source"] for container in containers for each in container["spec"].get("mounts", ())}
        return [each for each in self.client(host).get("/v1/volumes") if each["name"] not in used]

    # -- faults

    def restart(self, name: str, *, fault: str = "") -> None:
        """Start a host's insulad, anew if it runs, with a wish for a fault."""
        host = self.host(name)
        hosts.stop_daemon(host)
        self.faulty.discard(name)
        if fault:
            self.faulty.add(name)
            os.environ[VARIABLE] = fault
        try:
            with open(hosts.start_daemon(host), "rb") as ready:
                assert ready.read() == b"ready\n", hosts.tail(host)
        finally:
            os.environ.pop(VARIABLE, None)

    def kill_daemon(self, name: str) -> None:
        daemon = self.host(name).daemon
        assert daemon is not None
        # nsenter has become insulad by exec.
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def wait_killed(self, name: str) -> None:
        daemon = self.host(name).daemon
        assert daemon is not None
        assert daemon.wait(timeout=DEADLINE_S) == -signal.SIGKILL

    def engines(self, name: str) -> list[int]:
        """Return the CRIU processes of a host."""
        # By their parent, the spawner, since they enter the container's network; by their file, since they change their words.
        parents = cleanup.in_network(self.host(name).network)
        found = []
        for pid, parent in cleanup.parents().items():
            if parent in parents:
                with suppress(OSError):  # it has just ended
                    if "criu" in os.readlink(f"/proc/{pid}/exe"):
                        found.append(pid)
        return found

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Take the cable between the hosts away for a while."""
        with Route.in_namespace(self.world.outside) as route:
            route.set_master("ctl-2", None)
            try:
                yield
            finally:
                route.set_master("ctl-2", "ctl")

    def traces(self, host: str, container_id: str) -> list[str]:
        """Return what a host has of a container beside its record: folder, cgroups, interface, lease, processes."""
        folder = self.host(host).folder / "state/containers" / container_id
        found = [str(folder)] if folder.exists() else []
        parent = self.host(host).cgroup
        found += [str(path) for path in cleanup.cgroups_named(container_id) if parent in path.parts]
        wanted = interface_name(host, container_id)
        with Route.in_namespace(self.host(host).network) as route:
            found += [link.name for link in route.links() if link.name == wanted]
        found += [
            f"process {pid}" for pid in cleanup.members(container_id) if pid in self.host(host).processes()
        ]
        query = {"tenant": TENANT}
        volumes = self.client(host).get("/v1/volumes", query)
        return found + [f"volume {each['name']}" for each in volumes]


def start_pair(*, lan: Lan = LAN, is_paired: bool = True) -> Iterator[Pair]:
    """Two hosts, paired, with a LAN; ended, whatever happened."""
    hosts.GROUP = "root"
    world = World(lans=(lan,))
    with world:
        world.start()
        if is_paired:
            world.pair("alpha", "beta")
        world.create_networks()
        # Other tenants first, so that the same tenant has different uids on the two hosts.
        for number in range(3):
            wish = {"name": "lan", "subnet": f"10.98.{number}.0/24"}
            world.hosts["beta"].client().call(
                "POST", "/v1/networks", query={"tenant": f"other{number}"}, body=wish
            )
            spec = {"image": "host", "name": "other", "command": ["/bin/true"], "network": "none"}
            world.hosts["beta"].client().call(
                "POST", "/v1/containers", query={"tenant": f"other{number}"}, body=spec
            )
        yield Pair(world)


def mended_after(pair: Pair) -> Iterator[Pair]:
    """For a test that may break a host: afterwards all run again without a wish for a fault, and `c` is gone."""
    yield pair
    for name, host in pair.world.hosts.items():
        if name in pair.faulty or host.daemon is None or host.daemon.poll() is not None:
            pair.restart(name)
    pair.remove("c")


def emptied_after(pair: Pair, *names: str) -> Iterator[Pair]:
    """For a test that breaks no host: afterwards these containers are gone, and the logs are shown."""
    yield pair
    for name in names:
        pair.remove(name)
    print(show_log(pair))


def show_log(pair: Pair) -> str:
    """Return the last words of both daemons, for a failing test."""
    return "\n".join(hosts.tail(host) for host in pair.world.hosts.values())

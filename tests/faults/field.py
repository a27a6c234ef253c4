# SPDX-License-Identifier: Apache-2.0
"""Two hosts on small disks with clocks of their own, one container that is moved to and fro, and the gate at which a move stops.

Out of scope: what is struck at the gate (`strike.py`), what must hold afterwards (`runner.py`).
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from demo import hosts
from demo.hosts import World

from faults import strike
from faults.census import Census, Container, count
from faults.pace import Pace
from faults.workload import PROGRAM, Listener, ask
from insula.migrate.fault import Point
from insula.model.errors import InsulaError
from insula.runtime.fault import VARIABLE
from two_hosts import LAN, Pair, wait_until

NAME = "c"
REACH_S = 20.0
SETTLE_S = 40.0
HEARD_S = 20.0
QUIET_S = 10.0
"""Until what a move leaves behind for a moment has gone."""
MAX_PAUSE_MS = 60_000
TRIES = 5
INSULAD = ("-m", "insula.cli")


class Missed(Exception):
    """What was to be struck was not there: this says nothing about what would have held."""


class Field:
    """Two hosts, a container, and what is known of both."""

    def __init__(self, world: World, *, program: Sequence[str] = INSULAD) -> None:
        self.pair = Pair(world)
        self.pace = Pace()
        self.census = Census()
        self.container = Container(id="", address="")
        self.listener = Listener(world)
        self.last_error = ""
        self._program = tuple(program)
        self._wish = world.folder / "wish"
        self._gate = world.folder / "gate"
        os.mkfifo(self._gate)

    def close(self) -> None:
        self.listener.close()

    def points_passed(self) -> list[str]:
        """Return the points that were passed, wished for or not, in order."""
        path = Path(f"{self._wish}.passed")
        return path.read_text().split() if path.exists() else []

    # -- hosts

    def start(self, name: str) -> None:
        """Start a host's insulad and wait until it is ready."""
        clock = strike.clock_of(self.pair.host(name))
        os.environ.update(clock)
        try:
            reading = hosts.start_daemon(self.pair.host(name), program=self._program)
        finally:
            for each in clock:
                os.environ.pop(each)
        with open(reading, "rb") as ready:
            if ready.read() != b"ready\n":
                raise RuntimeError(f"insulad of {name} does not start:\n{hosts.tail(self.pair.host(name))}")

    def home(self) -> str:
        """Return the host that has the container, empty for none or both."""
        found = [name for name in self.pair.world.hosts if self.pair.find(name, NAME)]
        return found[0] if len(found) == 1 else ""

    def is_settled(self) -> bool:
        home = self.home()
        return bool(home) and self.pair.status(home, NAME) == "running"

    def is_doubled(self) -> bool:
        """Tell whether both hosts say that theirs runs, which never passes by itself: a source that has committed says `moved`."""
        return all(self.pair.status(name, NAME) == "running" for name in self.pair.world.hosts)

    def begin_anew(self) -> None:
        """After a case that did not hold: both insulads anew, nothing left of the container."""
        self._wish.unlink(missing_ok=True)
        with suppress(OSError):  # let go who waits at the gate
            os.close(os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK))
        for name, host in self.pair.world.hosts.items():
            hosts.stop_daemon(host)
            (host.folder / "state" / "filled").unlink(missing_ok=True)
            self.start(name)
        with suppress(InsulaError):
            self.pair.remove(NAME)

    # -- the container

    def make_container(self) -> None:
        """Put a fresh container in the place of what is left of the last."""
        self.pair.remove(NAME)
        mounts = [{"kind": "volume", "source": "data", "target": "/data"}]
        restart = {"kind": "always"}
        address = self.pair.run(NAME, program=PROGRAM, mounts=mounts, restart=restart)
        record = self.pair.find("alpha", NAME)
        self.container = Container(id=str(record["id"]) if record else "", address=address)
        self.nonce()

    def nonce(self, words: str = "clear") -> str:
        """Return what the program answers to that; by default it forgets what it has stored, and says who it is."""
        heard: list[object] = []

        def is_heard() -> bool:
            with suppress(OSError, ValueError):
                heard.append(ask(self.pair.world, self.container.address, words))
            return bool(heard)

        if not wait_until(is_heard, seconds=self.pace.allow(HEARD_S)):
            raise RuntimeError("the program does not answer")
        return str(heard[-1])

    def measure(self) -> None:
        """Move it there and back without a fault: what that takes, and what it leaves, is what is usual."""
        if not self.home():
            self.make_container()
            self._learn(self.home())
        for _way in range(2):
            source = self.home()
            target = "beta" if source == "alpha" else "alpha"
            began = time.monotonic()
            self.move(source, target)
            self.pace.note(time.monotonic() - began)
            if self.last_error or self.home() != target:
                raise RuntimeError(f"a move without a fault fails: {self.last_error or 'it is not there'}")
            self._learn(target)

    def _learn(self, home: str) -> None:
        for name, host in self.pair.world.hosts.items():
            self._wait_unchanged(name)
            self.census.learn(host, self.container, has_it=name == home)

    def _wait_unchanged(self, name: str) -> None:
        """Wait until a host has ended what a move leaves to be done after its end."""
        host, seen = self.pair.host(name), [count(self.pair.host(name), self.container)]

        def is_same() -> bool:
            seen.append(count(host, self.container))
            return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

        wait_until(is_same, seconds=self.pace.allow(QUIET_S))

    # -- a move, and the gate in it

    def move(self, source: str, target: str, *, mode: str = "auto") -> None:
        """Move it; again what CRIU cannot dump just now (a connection that is being made), as its error says."""
        for _try in range(TRIES):
            self._move_once(source, target, mode=mode)
            if "TCP connection" not in self.last_error:
                return

    def _move_once(self, source: str, target: str, *, mode: str) -> None:
        self.last_error = ""
        try:
            self.pair.act(source, NAME, "migrate", target=target, max_pause_ms=MAX_PAUSE_MS, mode=mode)
        except InsulaError as error:
            self.last_error = error.message
        except (OSError, ValueError) as error:
            self.last_error = str(error)

    @contextmanager
    def failing(self, point: Point) -> Iterator[None]:
        """Have that point fail.  Raises: Missed if it was not passed meanwhile."""
        before = len(self.points_passed())
        self._wish.write_text(f"{point}=fail")
        try:
            yield
        finally:
            self._wish.unlink()
        if point not in self.points_passed()[before:]:
            raise Missed(f"`{point}` was not reached: {self.last_error}")

    def wish_to_stop(self, point: Point) -> None:
        self._wish.write_text(f"{point}=wait:{self._gate}")

    @contextmanager
    def stopped(self, point: Point, *, mover: threading.Thread) -> Iterator[None]:
        """Wait until a daemon stands at the gate; let it go on at the end.  Raises: Missed if none comes there."""
        end, descriptor = time.monotonic() + self.pace.allow(REACH_S), -1
        while descriptor < 0:
            try:
                descriptor = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:  # ENXIO: nobody reads
                if not mover.is_alive() or time.monotonic() > end:
                    self._wish.unlink(missing_ok=True)
                    raise Missed(f"`{point}` was not reached: {self.last_error or error}") from error
                mover.join(0.005)
        self._wish.unlink()
        try:
            yield
        finally:
            os.close(descriptor)


@contextmanager
def open_field(*, program: Sequence[str] = INSULAD) -> Iterator[Field]:
    """Two hosts with small disks, paired, and a container that was moved without a fault; ended, whatever happened."""
    hosts.GROUP = "root"
    with World(lans=(LAN,)) as world:
        os.environ[VARIABLE] = f"@{world.folder / 'wish'}"
        try:
            for host in world.hosts.values():
                strike.mount_state(host)
            found = Field(world, program=program)
            for name in world.hosts:
                found.start(name)
            _prepare(world)
            found.measure()
            yield found
            found.close()
        finally:
            os.environ.pop(VARIABLE)
            if kept := os.environ.get("FAULTS_KEEP"):
                for host in world.hosts.values():
                    shutil.copy(host.log, f"{kept}-{world.folder.name}-{host.name}.log")


def _prepare(world: World) -> None:
    world.pair("alpha", "beta")
    world.create_networks()
    # Another tenant: on beta before this one, so that this one has other uids there, and ticks tell the hosts apart.
    body = {"image": "host", "name": "other", "command": ["/bin/true"], "network": "none"}
    world.hosts["alpha"].client().call("POST", "/v1/containers", body={**body, "name": "first"})
    for host in world.hosts.values():
        host.client().call("POST", "/v1/containers", query={"tenant": "other"}, body=body)
    world.hosts["beta"].client().call("POST", "/v1/containers", body={**body, "name": "first"})

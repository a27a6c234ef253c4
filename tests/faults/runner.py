# SPDX-License-Identifier: Apache-2.0
"""Run cases: one container, moved to and fro between two hosts, a fault in each move, and what must hold afterwards."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError

from demo import cleanup, hosts
from demo.hosts import World

from faults import strike
from faults.cases import Case, Fault, Owner, may_end_the_program
from faults.workload import (
    LIMIT_BYTES,
    PROGRAM,
    Listener,
    Returning,
    Steady,
    ask,
    is_answered,
    judge_ticks,
    judge_writes,
)
from insula.migrate.fault import VARIABLE, Point
from insula.model.errors import InsulaError
from two_hosts import LAN, Pair, wait_until

NAME = "c"
REACH_S = 60.0
SETTLE_S = 60.0
HEARD_S = 40.0
MAX_PAUSE_MS = 60_000
LASTING = frozenset(
    {
        Fault.SLOW,
        Fault.DISK_SOURCE,
        Fault.DISK_TARGET,
        Fault.MEMORY_TARGET,
        Fault.CLOCK_SOURCE,
        Fault.CLOCK_TARGET,
    }
)
LASTING_S = 4.0
"""What strikes only what is done while it lasts stays for the whole move, or so long."""
TRIES = 5
SILENT = frozenset(
    {
        Point.SOURCE_FROZEN,
        Point.SOURCE_DUMPED,
        Point.TARGET_RESTORE,
        Point.TARGET_HELD,
        Point.SOURCE_HELD,
        Point.SOURCE_COMMITTED,
        Point.TARGET_COMMITTED,
    }
)
"""From the freeze until it runs on the target nobody may answer at its address.

Not while the target takes the last pages: CRIU dumps meanwhile, and may give up for a connection that is not accepted yet.
"""
INSULAD = ("-m", "insula.cli")


@dataclass(kw_only=True)
class Result:
    """What came of one case; no problem: it held."""

    case: Case
    owner: str = ""
    seconds: float = 0.0
    gap_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        verdict = "; ".join(self.problems) or "held"
        case = self.case
        return (
            f"{case.number:4} {case.fault.value:32} {case.point.value:18} heal {case.heal_after_s:3.1f} s"
            f"  owner {self.owner or '?':1}  gap {self.gap_s:5.2f} s  {self.seconds:5.1f} s  {verdict}"
        )


class Field:
    """Two hosts, a container, and the referee."""

    def __init__(self, world: World, *, program: Sequence[str] = INSULAD) -> None:
        self.pair = Pair(world)
        self._program = tuple(program)
        self._wish = world.folder / "wish"
        self._gate = world.folder / "gate"
        os.mkfifo(self._gate)
        self._address = ""
        self._id = ""
        self._first = 0
        self._listener = Listener(world)
        self.last_error = ""
        self.retried = 0

    def close(self) -> None:
        self._listener.close()

    def points_hit(self) -> set[str]:
        """Return the points that were passed, wished for or not."""
        path = Path(f"{self._wish}.passed")
        return set(path.read_text().split()) if path.exists() else set()

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

    def make_container(self) -> None:
        """Put a fresh container in the place of what is left of the last."""
        self.pair.remove(NAME)
        mounts = [{"kind": "volume", "source": "data", "target": "/data"}]
        restart = {"kind": "always"}
        self._address = self.pair.run(NAME, program=PROGRAM, mounts=mounts, restart=restart)
        record = self.pair.find("alpha", NAME)
        self._id = str(record["id"]) if record else ""
        self._nonce()

    def _nonce(self, words: str = "clear") -> str:
        heard: list[object] = []

        def is_heard() -> bool:
            with suppress(OSError, ValueError):
                heard.append(ask(self.pair.world, self._address, words))
            return bool(heard)

        if not wait_until(is_heard, seconds=HEARD_S):
            raise RuntimeError("the program does not answer")
        return str(heard[-1])

    # -- one case

    def run(self, case: Case) -> Result:
        """Run a case.  What it found is in its result; the container is made anew after one that did not hold."""
        began = time.monotonic()
        result = Result(case=case)
        if not self.home():
            self.make_container()
        source = self.home()
        target = "beta" if source == "alpha" else "alpha"
        nonce = self._nonce()
        self._listener.take()
        world = self.pair.world
        self._first += 2 * LIMIT_BYTES
        steady = Steady(world, self._address, first=self._first)
        returning = Returning(world, self._address, first=self._first + 1)
        steady.wait_for_more(5, seconds=HEARD_S)
        try:
            self._fault(case, source=source, target=target, result=result)
            self._judge(result, nonce=nonce, source=source, steady=steady, returning=returning)
        except (InsulaError, OSError, RuntimeError, AssertionError, SubprocessError) as error:
            result.problems.append(f"{type(error).__name__}: {error}")
        finally:
            for writer in (steady, returning):
                writer.finish(seconds=1.0)
        result.seconds = time.monotonic() - began
        result.gap_s = steady.longest_gap_s
        if result.problems:
            if hold := os.environ.get("FAULTS_HOLD"):
                print(result.line(), flush=True)
                time.sleep(float(hold))
            self._begin_anew()
        return result

    def _fault(self, case: Case, *, source: str, target: str, result: Result) -> None:
        action = "fail" if case.fault is Fault.FAIL else f"wait:{self._gate}"
        self._wish.write_text(f"{case.point}={action}")
        mover = threading.Thread(target=self._move_until_taken, args=(source, target), daemon=True)
        mover.start()
        if case.fault is Fault.FAIL:
            mover.join(SETTLE_S)
            self._wish.unlink()
        else:
            with self._reached(case.point, mover=mover):
                is_asked = case.number % 2 and case.point in SILENT  # a client that asks anew waits longer
                if is_asked and is_answered(self.pair.world, self._address):
                    result.problems.append("a copy is on the network that may not run")
                struck = strike.strike(self.pair, case.fault, source=source, target=target, start=self.start)
                if not struck.found and case.fault in (Fault.CLOCK_SOURCE, Fault.CLOCK_TARGET):
                    result.problems.append("insulad has no clock of its own")
            try:
                mover.join(case.heal_after_s)
            finally:
                if case.fault in LASTING:
                    mover.join(LASTING_S)
                struck.undo()
        mover.join(SETTLE_S)
        if mover.is_alive():
            result.problems.append(f"the move has not ended within {SETTLE_S:.0f} s")

    def _move_until_taken(self, source: str, target: str) -> None:
        """Move; again what CRIU cannot dump just now (a connection that is being made), as its error says."""
        for _try in range(TRIES):
            self._move(source, target)
            if "TCP connection" not in self.last_error:
                return
            self.retried += 1

    def _move(self, source: str, target: str) -> None:
        self.last_error = ""
        try:
            self.pair.act(source, NAME, "migrate", target=target, max_pause_ms=MAX_PAUSE_MS)
        except InsulaError as error:
            self.last_error = error.message
        except (OSError, ValueError) as error:
            self.last_error = str(error)

    @contextmanager
    def _reached(self, point: Point, *, mover: threading.Thread) -> Iterator[None]:
        """Wait until a daemon stands at the gate; let it go on at the end."""
        end, descriptor = time.monotonic() + REACH_S, -1
        while descriptor < 0:
            try:
                descriptor = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:  # ENXIO: nobody reads
                if not mover.is_alive() or time.monotonic() > end:
                    self._wish.unlink(missing_ok=True)
                    raise RuntimeError(f"`{point}` was not reached: {self.last_error or error}") from error
                mover.join(0.005)
        self._wish.unlink()
        try:
            yield
        finally:
            os.close(descriptor)

    # -- what must hold

    def _judge(
        self, result: Result, *, nonce: str, source: str, steady: Steady, returning: Returning
    ) -> None:
        problems = result.problems

        def is_settled() -> bool:
            home = self.home()
            return bool(home) and self.pair.status(home, NAME) == "running"

        if not wait_until(is_settled, seconds=SETTLE_S):
            states = {name: self.pair.status(name, NAME) or "none" for name in self.pair.world.hosts}
            problems.append(f"not one copy that runs: {states}")
            return
        home = self.home()
        result.owner = (Owner.SOURCE if home == source else Owner.TARGET).value
        if result.case.owner not in (Owner.EITHER, result.owner):
            problems.append(f"owner should be {result.case.owner.value}: {self.last_error or 'no error'}")
        if not returning.wait_for_more(3, seconds=HEARD_S):
            problems.append("no new connection is answered")
            return
        is_same = self._nonce("dump").endswith(f"'{nonce}']")
        if not is_same and not may_end_the_program(result.case.fault, result.case.point):
            problems.append("the program was started anew: its memory is lost")
        if is_same and not steady.wait_for_more(3, seconds=HEARD_S):
            problems.append(f"the connection is dead: {steady.problem or 'no answer'}")
        for writer in (steady, returning):
            writer.finish()
        dump = ask(self.pair.world, self._address, "dump")
        stored = dump[0] if isinstance(dump, list) else []
        problems += judge_writes(stored, steady, returning) + judge_ticks(self._listener.take())
        other = "beta" if home == "alpha" else "alpha"
        if not wait_until(lambda: not self._residue(home, other), seconds=8.0):
            problems += self._residue(home, other)

    def _residue(self, home: str, other: str) -> list[str]:
        for pid in cleanup.members(self._id):
            with suppress(ChildProcessError):  # orphans are this process's children, as init's elsewhere
                os.waitpid(pid, os.WNOHANG)
        found = [f"{other} still has {each}" for each in self.pair.traces(other, self._id)]
        found += [f"{other} still has {line}" for line in self._lines(other)]
        found += [
            f"{home} still has {line}" for line in self._lines(home) if line.startswith("journal arriving")
        ]
        for name in self.pair.world.hosts:
            found += [f"{name} still has CRIU {pid}" for pid in self.pair.engines(name)]
        return found

    def _lines(self, host: str) -> list[str]:
        """Return what a host's store says of the container: journal and leases."""
        path = self.pair.host(host).folder / "state" / "db.sqlite"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0) as store:
            lines = [f"journal {key}" for (key,) in store.execute("SELECT key FROM journal")]
            leases = store.execute("SELECT address FROM leases WHERE container = ?", (self._id,))
            lines += [f"lease {address}" for (address,) in leases]
        store.close()
        return [line for line in lines if self._id in line or line.startswith("lease")]

    def _begin_anew(self) -> None:
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


@contextmanager
def open_field(*, program: Sequence[str] = INSULAD) -> Iterator[Field]:
    """Two hosts with small disks, paired; ended, whatever happened."""
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
            yield found
            found.close()
        finally:
            os.environ.pop(VARIABLE)
            if kept := os.environ.get("FAULTS_KEEP"):
                for host in world.hosts.values():
                    shutil.copy(host.log, f"{kept}-{host.name}.log")


def _prepare(world: World) -> None:
    world.pair("alpha", "beta")
    world.create_networks()
    # Another tenant first on beta: the same tenant has other uids there, and ticks tell the hosts apart.
    client = world.hosts["beta"].client()
    spec = {"image": "host", "name": "other", "command": ["/bin/true"], "network": "none"}
    client.call("POST", "/v1/containers", query={"tenant": "other"}, body=spec)

# SPDX-License-Identifier: Apache-2.0
"""Run cases: a fault in the middle of a move, and what must hold afterwards.

What was to be struck is not always there: a busy machine gives a move up before it comes to the point.  Such a case is neither held
nor failed but *missed*: it is run again once, and if it is missed again, that is told.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from subprocess import SubprocessError

import msgspec
from demo import cleanup

from faults import strike
from faults.cases import Case, Fault, Owner, may_end_a_connection, may_end_the_program, owner_after
from faults.field import HEARD_S, NAME, QUIET_S, SETTLE_S, Field, Missed
from faults.workload import LIMIT_BYTES, Returning, Steady, ask, is_answered, judge_ticks, judge_writes
from insula.migrate.fault import OF_PULLS, Point
from insula.model.errors import InsulaError
from two_hosts import wait_until

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
TOO_LATE = (
    "cannot wait for the other host",
    "the other host says nothing",
    "has not restored it within",
    "uses no processor",
)
"""A move that was given up for its own deadlines: on a busy machine that is right, and not the fault's doing."""


SLOW_TO_GO_S = 3.0
"""What stays for longer is told, although it went."""


class Verdict(StrEnum):
    HELD = "held"
    FAILED = "failed"
    MISSED = "missed"
    UNSTEADY = "unsteady"
    """Something was left once, and not the two times after: a race to be found.  A second copy or a lost write is never that."""


class Result(msgspec.Struct, kw_only=True):
    """What came of one case."""

    number: int
    verdict: Verdict = Verdict.HELD
    owner: str = ""
    is_second: bool = False
    """It was missed before."""
    gap_s: float = 0.0
    seconds: float = 0.0
    laps: dict[str, float] = {}
    """Where the seconds went."""
    reasons: list[str] = []
    is_only_residue: bool = False
    """All held but that something was left."""

    def fail(self, *reasons: str) -> None:
        if reasons:
            self.reasons += reasons
            self.verdict = Verdict.FAILED


def line_of(case: Case, result: Result) -> str:
    words = "; ".join((*(["again"] if result.is_second else []), result.verdict, *result.reasons))
    return (
        f"{case.number:4} {case.fault.value:32} {case.point.value:18} heal {case.heal_after_s:3.1f} s"
        f"  owner {result.owner or '?':1}  gap {result.gap_s:5.2f} s  {result.seconds:5.1f} s  {words}"
    )


class Runner:
    """Runs cases on one field, one after the other."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._first = 0

    def run(self, case: Case) -> Result:
        """Run a case, again if it was missed, twice if it only left something; the hosts are made anew after one that did not hold."""
        result = self._run_once(case)
        if result.is_only_residue and all(self._run_once(case).verdict is Verdict.HELD for _ in range(2)):
            result = msgspec.structs.replace(result, verdict=Verdict.UNSTEADY)
        if result.verdict is Verdict.MISSED:
            self._field.measure()  # the machine may have become slower
            reasons, result = result.reasons, self._run_once(case)
            result = msgspec.structs.replace(result, is_second=True, reasons=[*result.reasons, *reasons])
        return result

    def _run_once(self, case: Case) -> Result:
        began = time.monotonic()
        result = Result(number=case.number)
        field = self._field
        if not field.home():
            field.make_container()
        source = field.home()
        target = "beta" if source == "alpha" else "alpha"
        nonce = field.nonce()
        field.listener.take()
        self._first += 2 * LIMIT_BYTES
        steady = Steady(field.pair.world, field.container.address, first=self._first)
        returning = Returning(field.pair.world, field.container.address, first=self._first + 1)
        steady.wait_for_more(5, seconds=field.pace.allow(HEARD_S))
        try:
            with _lap(result, "fault"):
                self._fault(case, source=source, target=target, result=result)
            self._judge(case, result, nonce=nonce, source=source, writers=(steady, returning))
        except Missed as error:
            result.verdict, result.reasons = Verdict.MISSED, [*result.reasons, str(error)]
        except (InsulaError, OSError, RuntimeError, AssertionError, SubprocessError) as error:
            result.fail(f"{type(error).__name__}: {error}")
        finally:
            for writer in (steady, returning):
                writer.finish(seconds=1.0)
        result.seconds, result.gap_s = time.monotonic() - began, steady.longest_gap_s
        if result.verdict is not Verdict.HELD:
            self._begin_anew(case, result)
        return result

    def _begin_anew(self, case: Case, result: Result) -> None:
        if hold := os.environ.get("FAULTS_HOLD"):
            print(line_of(case, result), flush=True)
            threading.Event().wait(float(hold))
        self._field.begin_anew()

    def _fault(self, case: Case, *, source: str, target: str, result: Result) -> None:
        field, settle_s = self._field, self._field.pace.allow(SETTLE_S)
        mode = "post-copy" if case.point in OF_PULLS else "auto"
        mover = threading.Thread(target=field.move, args=(source, target), kwargs={"mode": mode}, daemon=True)
        if case.fault is Fault.FAIL:
            with field.failing(case.point):
                mover.start()
                mover.join(settle_s)
        else:
            field.wish_to_stop(case.point)
            mover.start()
            self._strike(case, mover=mover, source=source, target=target, result=result)
        mover.join(settle_s)
        if mover.is_alive():
            result.fail(f"the move has not ended within {settle_s:.0f} s")

    def _strike(
        self, case: Case, *, mover: threading.Thread, source: str, target: str, result: Result
    ) -> None:
        field = self._field
        with field.stopped(case.point, mover=mover):
            is_asked = case.number % 2 and case.point in SILENT  # a client that asks anew waits longer
            if is_asked and is_answered(field.pair.world, field.container.address):
                result.fail("a copy is on the network that may not run")
            struck = strike.strike(field.pair, case.fault, source=source, target=target, start=field.start)
        try:
            mover.join(case.heal_after_s)
        finally:
            if case.fault in LASTING:
                mover.join(LASTING_S)
            with _lap(result, "heal"):
                struck.undo()
        if not struck.found:
            mover.join(field.pace.allow(SETTLE_S))
            raise Missed("there was nothing to strike")

    # -- what must hold

    def _judge(
        self, case: Case, result: Result, *, nonce: str, source: str, writers: tuple[Steady, Returning]
    ) -> None:
        field = self._field
        with _lap(result, "settle"):
            # Asked once: what runs may yet be found to have ended with its spawner, and comes back.
            is_settled = wait_until(
                lambda: field.is_settled() or field.is_doubled(), seconds=field.pace.allow(SETTLE_S)
            )
        if not is_settled or field.is_doubled():
            states = {name: field.pair.status(name, NAME) or "none" for name in field.pair.world.hosts}
            result.fail(f"not one copy that runs: {states}")
            return
        home = field.home()
        result.owner = (Owner.SOURCE if home == source else Owner.TARGET).value
        with _lap(result, "hear"):
            is_heard = self._judge_clients(case, result, nonce=nonce, writers=writers)
        if not is_heard:
            return
        dump = ask(field.pair.world, field.container.address, "dump")
        stored = dump[0] if isinstance(dump, list) else []
        result.fail(*judge_writes(stored, *writers), *judge_ticks(field.listener.take()))
        with _lap(result, "residue"):
            self._judge_residue(result, home=home)
        if case.owner not in (Owner.EITHER, result.owner):
            self._judge_owner(case, result)

    def _judge_clients(
        self, case: Case, result: Result, *, nonce: str, writers: tuple[Steady, Returning]
    ) -> bool:
        """Returns: whether it is heard at all."""
        field, (steady, returning) = self._field, writers
        heard_s = field.pace.allow(HEARD_S)
        if not returning.wait_for_more(3, seconds=heard_s):
            result.fail("no new connection is answered")
            return False
        is_same = field.nonce("dump").endswith(f"'{nonce}']")
        if not is_same and not may_end_the_program(case.fault, case.point):
            result.fail("the program was started anew: its memory is lost")
        must_live = is_same and not may_end_a_connection(case.fault, case.point)
        if must_live and not steady.wait_for_more(3, seconds=heard_s):
            result.fail(f"the connection is dead: {steady.problem or 'no answer'}")
        for writer in writers:
            writer.finish()
        return True

    def _judge_owner(self, case: Case, result: Result) -> None:
        """Raises: Missed if the machine, not the fault, was why the move was given up."""
        error = self._field.last_error
        wanted = owner_after(case.fault, case.point)
        if (
            wanted is Owner.TARGET
            and result.verdict is Verdict.HELD
            and any(each in error for each in TOO_LATE)
        ):
            raise Missed(f"the move was given up: {error}")
        result.fail(f"owner should be {wanted.value}: {error or 'no error'}")

    def _judge_residue(self, result: Result, *, home: str) -> None:
        began, seen = time.monotonic(), list[str]()

        def is_clean() -> bool:
            found = self._residue(home)
            seen[:] = found or seen
            return not found

        if not wait_until(is_clean, seconds=self._field.pace.allow(QUIET_S)):
            result.is_only_residue = result.verdict is Verdict.HELD
            result.fail(*seen)
        elif seen and time.monotonic() - began > SLOW_TO_GO_S:
            result.reasons.append(f"late to go: {'; '.join(seen)}")

    def _residue(self, home: str) -> list[str]:
        field = self._field
        for pid in cleanup.members(field.container.id):
            with suppress(ChildProcessError):  # orphans are this process's children, as init's elsewhere
                os.waitpid(pid, os.WNOHANG)
        return [
            line
            for name, host in field.pair.world.hosts.items()
            for line in field.census.surplus(host, field.container, has_it=name == home)
        ]


@contextmanager
def _lap(result: Result, name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        result.laps[name] = round(result.laps.get(name, 0.0) + time.monotonic() - began, 2)

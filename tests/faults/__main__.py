# SPDX-License-Identifier: Apache-2.0
"""`make faults`: so many moves with a fault in each, drawn by a seed; a line for each, a matrix, then one line for machines.

Most of the time of a case is waiting (for a link that heals, a peer that is silent), so several pairs of hosts take cases from one
queue, each in a process of its own (`--pairs`): the same cases, whatever their number.

Exit codes: 0 all held, but for at most two that left something once of three times; 1 some failed; 4 all that struck held, but
some case was missed twice, or a cell had none.
"""

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "src")]

import msgspec  # noqa: E402
from demo.cleanup import alone  # noqa: E402

from faults import mutations  # noqa: E402
from faults.cases import ORDER, Case, Fault, all_cells, draw  # noqa: E402
from faults.coverage import Coverage  # noqa: E402
from faults.field import open_field  # noqa: E402
from faults.runner import Result, Runner, Verdict, line_of  # noqa: E402

SUMMARY = "FAULTS "
INCOMPLETE = 4
MAX_UNSTEADY = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", type=int, default=1, dest="first", help="number of the first case")
    parser.add_argument("--only", type=int, nargs="+", default=[], help="only the cases of these numbers")
    parser.add_argument("--repeat", type=int, default=1, help="run each case so often")
    parser.add_argument("--fault", choices=[each.name for each in Fault], help="only this fault")
    parser.add_argument("--point", choices=[each.value for each in ORDER], help="only this point")
    parser.add_argument("--heal", type=float, help="seconds until the fault is over, the same for all")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of hosts that work at the same time")
    parser.add_argument("--laps", action="store_true", help="say where the seconds of a case went")
    parser.add_argument("--planted", action="store_true", help="plant mistakes instead: each must be caught")
    parser.add_argument("--shared", action="store_true", help="do not wait for others on this machine")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    with nullcontext() if options.shared else alone("make faults"):
        return run_planted() if options.planted else run(options)


def run_planted() -> int:
    """Plant mistakes; each must be caught."""
    caught = dict(mutations.run())
    print(f"PLANTED {json.dumps(caught)}")
    return 0 if all(caught.values()) else 1


def chosen(options: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for."""
    found: list[Case] = []
    for case in draw(1000 * options.cases, seed=options.seed, heal_after_s=options.heal):
        if len(found) == options.cases or (options.only and case.number > max(options.only)):
            break
        is_wanted = case.number >= options.first and (not options.only or case.number in options.only)
        is_fault = options.fault in (None, case.fault.name) and options.point in (None, case.point.value)
        if is_wanted and is_fault:
            found.append(case)
    return [case for case in found for _time in range(options.repeat)]


def run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    cases = chosen(options)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    workers = [_Worker(waiting, shows_laps=options.laps) for _each in range(min(options.pairs, len(cases)))]
    for worker in workers:
        worker.join()
    done = [each for worker in workers for each in worker.done]
    points = {point for worker in workers for point in worker.points}
    return _sum_up(len(cases), done, points=points, seed=options.seed, seconds=time.monotonic() - began)


class Task(msgspec.Struct, kw_only=True):
    """What a worker is told: a case."""

    number: int
    fault: Fault
    point: str
    heal_after_s: float


class Told(msgspec.Struct, kw_only=True):
    """What a worker says: a result, and the points that were passed."""

    result: Result
    points: list[str]


def work() -> int:
    """Run the cases that come on standard input on a pair of hosts; say what came of each.

    After a case that failed the hosts are others, for something of it may stay.
    """
    line = sys.stdin.readline()
    while line:
        with open_field() as field:
            runner, has_failed = Runner(field), False
            while line and not has_failed:
                result = runner.run(_case_of(line))
                told = Told(result=result, points=sorted(set(field.points_passed())))
                print(msgspec.json.encode(told).decode(), flush=True)
                has_failed = result.verdict is Verdict.FAILED
                line = sys.stdin.readline()
    return 0


def _case_of(line: str) -> Case:
    task = msgspec.json.decode(line, type=Task)
    point = next(each for each in ORDER if each.value == task.point)
    return Case(number=task.number, fault=task.fault, point=point, heal_after_s=task.heal_after_s)


class _Worker(threading.Thread):
    """Has a process with a pair of hosts of its own run cases, until there are no more."""

    def __init__(self, waiting: queue.SimpleQueue[Case], *, shows_laps: bool) -> None:
        super().__init__()
        self.done: list[tuple[Case, Result]] = []
        self.points: set[str] = set()
        self._waiting = waiting
        self._shows_laps = shows_laps
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults", "--worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start()

    def run(self) -> None:
        with self._process as process:
            while process.poll() is None:
                try:
                    case = self._waiting.get_nowait()
                except queue.Empty:
                    break
                self._note(case, self._ask(process, case))

    def _ask(self, process: subprocess.Popen[str], case: Case) -> Told:
        task = Task(
            number=case.number, fault=case.fault, point=case.point.value, heal_after_s=case.heal_after_s
        )
        try:
            print(msgspec.json.encode(task).decode(), file=process.stdin, flush=True)
            return msgspec.json.decode(process.stdout.readline() if process.stdout else "", type=Told)
        except (OSError, msgspec.DecodeError):
            reason = "the runner itself has ended: see above"
            process.kill()
            return Told(
                result=Result(number=case.number, verdict=Verdict.FAILED, reasons=[reason]), points=[]
            )

    def _note(self, case: Case, told: Told) -> None:
        self.done.append((case, told.result))
        self.points |= set(told.points)
        laps = f"  {told.result.laps}" if self._shows_laps else ""
        print(line_of(case, told.result) + laps, flush=True)


def _sum_up(
    wanted: int, done: list[tuple[Case, Result]], *, points: set[str], seed: int, seconds: float
) -> int:
    by_verdict = {
        verdict: [(case, result) for case, result in done if result.verdict is verdict] for verdict in Verdict
    }
    coverage = Coverage.of(case for case, result in done if result.verdict is not Verdict.MISSED)
    struck = {case.point for case, result in done if result.verdict is not Verdict.MISSED}
    empty = coverage.empty() if wanted >= len(all_cells()) else []
    if wanted >= len(all_cells()):
        print(*coverage.lines(), sep="\n")
    for verdict in (Verdict.FAILED, Verdict.UNSTEADY, Verdict.MISSED):
        for case, result in by_verdict[verdict]:
            print(f"{verdict}: {line_of(case, result)}")
    summary = {
        "cases": wanted,
        **{verdict.value: len(found) for verdict, found in by_verdict.items()},
        "again": sum(result.is_second for _case, result in done),
        "cells": len(coverage.struck),
        "cells_empty": [f"{fault.name} in {phase}" for fault, phase in empty],
        "points": len(struck),
        "points_not_struck": [each for each in ORDER if each not in struck],
        "points_not_passed": sorted(set(ORDER) - points),
        "seed": seed,
        "seconds": round(seconds),
    }
    print(f"{SUMMARY}{json.dumps(summary)}", flush=True)
    is_steady = len(by_verdict[Verdict.UNSTEADY]) <= MAX_UNSTEADY
    if not wanted or by_verdict[Verdict.FAILED] or not is_steady or len(done) != wanted:
        return 1
    return INCOMPLETE if by_verdict[Verdict.MISSED] or empty else 0


if __name__ == "__main__":
    sys.exit(main())

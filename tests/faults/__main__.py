# SPDX-License-Identifier: Apache-2.0
"""`make faults`: so many moves with a fault in each, drawn by a seed; a line for each, then one for machines.

Most of the time of a case is waiting (for a link that heals, a peer that is silent), so several pairs of hosts share the cases, each
in a process of its own (`--pairs`): the same cases, whatever their number.
"""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "src")]

from demo.cleanup import alone  # noqa: E402

from faults import mutations  # noqa: E402
from faults.cases import ORDER, Fault, draw  # noqa: E402
from faults.runner import open_field  # noqa: E402

SUMMARY = "FAULTS "
NOT_HIT = "points that were not hit: "
MISSED = 4
"""Exit code, if all held, and some point was not hit."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=[each.name for each in Fault], help="only this fault")
    parser.add_argument("--point", choices=[each.value for each in ORDER], help="only this point")
    parser.add_argument("--heal", type=float, help="seconds until the fault is over, the same for all")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of hosts that work at the same time")
    parser.add_argument(
        "--part", type=int, default=0, help="only every PAIRSth case, from this one on; of --pairs"
    )
    parser.add_argument("--planted", action="store_true", help="plant mistakes instead: each must be caught")
    parser.add_argument("--shared", action="store_true", help="do not wait for others on this machine")
    options = parser.parse_args()
    if options.planted:
        return run_planted()
    work = run if options.pairs == 1 or options.part else share
    if options.shared:
        return work(options)
    with alone("make faults"):
        return work(options)


def run_planted() -> int:
    """Plant mistakes; each must be caught."""
    caught = dict(mutations.run())
    print(f"PLANTED {json.dumps(caught)}")
    return 0 if all(caught.values()) else 1


def share(options: argparse.Namespace) -> int:
    """Give every pair of hosts its part, and add up."""
    parts = [_Part(number) for number in range(1, options.pairs + 1)]
    for part in parts:
        part.join()
    found = [part.summary for part in parts if part.summary]
    tried, held = (sum(each[name] for each in found) for name in ("cases", "held"))
    missed = set(ORDER).intersection(*(each["missed"] for each in found)) if found else set(ORDER)
    succeeded = len(found) == options.pairs and all(part.code in (0, MISSED) for part in parts)
    return _sum_up(tried, held=held, missed=sorted(missed), seed=options.seed) if succeeded else 1


class _Part(threading.Thread):
    """A process that works on its part; its lines are passed on, its summary is kept."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.summary: dict[str, Any] = {}
        self.code = -1
        command = [sys.executable, "-m", "tests.faults", *sys.argv[1:], "--shared", "--part", str(number)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.start()

    def run(self) -> None:
        for line in self._process.stdout or ():
            if line.startswith(SUMMARY):
                self.summary = json.loads(line.removeprefix(SUMMARY))
            elif not line.startswith(NOT_HIT):
                print(line, end="", flush=True)
        self.code = self._process.wait()


def run(options: argparse.Namespace) -> int:
    held = tried = wanted = 0
    with open_field() as field:
        for case in draw(10**6, seed=options.seed, heal_after_s=options.heal):
            if wanted == options.cases or case.number > 1000 * options.cases:
                break
            if (options.fault and case.fault.name != options.fault) or (
                options.point and case.point != options.point
            ):
                continue
            wanted += 1
            if options.part and wanted % options.pairs != options.part - 1:
                continue
            result = field.run(case)
            tried += 1
            held += not result.problems
            print(result.line(), flush=True)
        hit = field.points_hit()
    return _sum_up(tried, held=held, missed=sorted(set(ORDER) - hit), seed=options.seed)


def _sum_up(tried: int, *, held: int, missed: list[str], seed: int) -> int:
    if missed:
        print(NOT_HIT + ", ".join(missed))
    points = len(ORDER) - len(missed)
    summary = {"cases": tried, "held": held, "points_hit": points, "points": len(ORDER), "seed": seed}
    print(f"{SUMMARY}{json.dumps({**summary, 'missed': missed})}", flush=True)
    if not tried or held != tried:
        return 1
    return MISSED if missed else 0


if __name__ == "__main__":
    sys.exit(main())

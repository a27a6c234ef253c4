# SPDX-License-Identifier: Apache-2.0
"""`make faults`: so many moves with a fault in each, drawn by a seed; a line for each, then one for machines."""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "src")]

from demo.cleanup import alone  # noqa: E402

from faults import mutations  # noqa: E402
from faults.cases import ORDER, Fault, draw  # noqa: E402
from faults.runner import open_field  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=[each.name for each in Fault], help="only this fault")
    parser.add_argument("--point", choices=[each.value for each in ORDER], help="only this point")
    parser.add_argument("--heal", type=float, help="seconds until the fault is over, the same for all")
    parser.add_argument("--planted", action="store_true", help="plant mistakes instead: each must be caught")
    parser.add_argument("--shared", action="store_true", help="do not wait for others on this machine")
    options = parser.parse_args()
    if options.planted:
        return run_planted()
    if options.shared:
        return run(options)
    with alone("make faults"):
        return run(options)


def run_planted() -> int:
    """Plant mistakes; each must be caught."""
    caught = dict(mutations.run())
    print(f"PLANTED {json.dumps(caught)}")
    return 0 if all(caught.values()) else 1


def run(options: argparse.Namespace) -> int:
    held = tried = 0
    with open_field() as field:
        for case in draw(10**6, seed=options.seed, heal_after_s=options.heal):
            if tried == options.cases or case.number > 1000 * options.cases:
                break
            if (options.fault and case.fault.name != options.fault) or (
                options.point and case.point != options.point
            ):
                continue
            result = field.run(case)
            tried += 1
            held += not result.problems
            print(result.line(), flush=True)
        hit = field.points_hit()
    missed = sorted(set(ORDER) - hit)
    if missed:
        print(f"points that were not hit: {', '.join(missed)}")
    summary = {"cases": tried, "held": held, "points_hit": len(hit & set(ORDER)), "points": len(ORDER)}
    print(f"FAULTS {json.dumps({**summary, 'seed': options.seed})}")
    return 0 if tried and held == tried and not missed else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Is each planted mistake of `mutant.py` noticed?  Two by the runner, in the faults that show them, in which the right insulad holds.

The other two cannot be shown by killing processes: reading and then writing the owner needs a second writer, whom the container's
lock keeps out; a journal that is not synchronised needs the loss of power.  These are planted in the real store, and its tests
of the commit must fail; the model of the protocol catches all four (`tests/unit/migrate/test_protocol_model.py`).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from faults.cases import Case, Fault
from faults.field import open_field
from faults.runner import Runner, Verdict, line_of
from insula.migrate.fault import Point

MUTANT = str(Path(__file__).with_name("mutant.py"))
ROOT = Path(__file__).resolve().parents[2]
TRIES = 3
#: Mistake → the fault that shows it.
SHOWN_BY = {
    "thaw_on_timeout": Case(
        number=1, fault=Fault.CUT_TO_SOURCE, point=Point.TARGET_COMMITTED, heal_after_s=11.0
    ),
    "lock_dropped_late": Case(number=1, fault=Fault.KILL_TARGET, point=Point.SOURCE_HELD, heal_after_s=0.1),
}


#: Mistake → the tests that must fail with it.
TESTS = "tests/unit/runtime/test_commit_owner.py"
FAILED_BY = {
    "read_then_write": f"{TESTS}::test_one_of_two_gets_it",
    "no_fsync": f"{TESTS}::test_it_is_on_disk_when_it_returns",
}
PYTEST_FAILED = 1


def run() -> Iterator[tuple[str, bool]]:
    """Give each mistake with whether it was caught, printing what was seen."""
    for name, test in FAILED_BY.items():
        yield name, _is_failed(name, test)
    for name, case in SHOWN_BY.items():
        yield name, _is_noticed(name, case)


def _is_failed(name: str, test: str) -> bool:
    command = [
        sys.executable,
        MUTANT,
        name,
        "pytest",
        "-q",
        "--no-header",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        test,
    ]
    path = os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False, timeout=120)
    print(f"planted: {name:20}{test}: {'fails, as it must' if done.returncode else 'passes'}", flush=True)
    return done.returncode == PYTEST_FAILED


def _is_noticed(name: str, case: Case) -> bool:
    with open_field(program=(MUTANT, name)) as field:
        runner = Runner(field)
        for _try in range(TRIES):
            result = runner.run(case)
            print(f"planted: {name:20}{line_of(case, result)}", flush=True)
            if result.verdict is Verdict.FAILED:
                return True
    return False

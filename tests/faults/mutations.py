# SPDX-License-Identifier: Apache-2.0
"""Does the runner notice?  Each planted mistake of `mutant.py` gets the faults that show it; the right insulad holds in them.

Two mistakes need no second host: reading and writing the owner instead of comparing and setting it, and a journal that is not
synchronised; `tests/unit/runtime/test_commit_owner.py` and the model of the protocol catch these.
"""

from collections.abc import Iterator
from pathlib import Path

from faults.cases import Case, Fault
from faults.runner import open_field
from insula.migrate.fault import Point

MUTANT = str(Path(__file__).with_name("mutant.py"))
TRIES = 3
#: Mistake → the fault that shows it.
SHOWN_BY = {
    "thaw_on_timeout": Case(
        number=1, fault=Fault.CUT_TO_SOURCE, point=Point.TARGET_COMMITTED, heal_after_s=11.0
    ),
    "lock_dropped_late": Case(number=1, fault=Fault.KILL_TARGET, point=Point.SOURCE_HELD, heal_after_s=0.1),
}


def run() -> Iterator[tuple[str, bool]]:
    """Give each mistake with whether it was caught, printing what was seen."""
    for name, case in SHOWN_BY.items():
        is_caught = False
        with open_field(program=(MUTANT, name)) as field:
            for _try in range(TRIES):
                result = field.run(case)
                print(f"planted: {name:20}{result.line()}", flush=True)
                if is_caught := bool(result.problems):
                    break
        yield name, is_caught

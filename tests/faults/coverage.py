# SPDX-License-Identifier: Apache-2.0
"""What a run has tried: fault × phase → how many cases held, and what is missing.  Pure: no I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from faults.cases import Case, Cell, Fault, Phase, all_cells

NONE_POSSIBLE = "–"
"""What the fault strikes is not there in that phase (`cases.is_possible`)."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Cases that struck, by cell."""

    struck: Counter[Cell]

    @classmethod
    def of(cls, cases: Iterable[Case]) -> "Coverage":
        return cls(struck=Counter(case.cell for case in cases))

    def empty(self) -> list[Cell]:
        """Return the cells that could have had a case and had none."""
        return sorted(all_cells() - set(self.struck))

    def lines(self) -> Iterator[str]:
        """Give the matrix for people: a line for each fault, a column for each phase."""
        possible = all_cells()
        yield " ".join((f"{'cases that struck':32}", *(f"{phase.value:>8}" for phase in Phase)))
        for fault in Fault:
            counts = (
                str(self.struck[fault, phase]) if (fault, phase) in possible else NONE_POSSIBLE
                for phase in Phase
            )
            yield " ".join((f"{fault.value:32}", *(f"{each:>8}" for each in counts)))

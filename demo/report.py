# SPDX-License-Identifier: Apache-2.0
"""What happened: the steps as they go, the table at the end, the one line for machines.  Pure but for printing."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from demo.load import Outcome


@dataclass(frozen=True, kw_only=True)
class Move:
    """What `insula migrate --format json` told."""

    frozen_ms: float
    moved_bytes: int
    seconds: float

    @property
    def moved_mb(self) -> float:
        return self.moved_bytes / 1_000_000


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The whole run."""

    outcomes: dict[str, Outcome]
    move: Move
    seconds: float

    @property
    def failed(self) -> int:
        return sum(each.failed for each in self.outcomes.values())

    @property
    def lost(self) -> int:
        return sum(each.lost for each in self.outcomes.values())

    def line(self) -> str:
        """Return the last line of the demo."""
        facts = {
            "requests": sum(each.requests for each in self.outcomes.values()),
            "failed": self.failed,
            "lost": self.lost,
            "longest_gap_ms": round(max(each.longest_gap_ms for each in self.outcomes.values()), 1),
            "moved_mb": round(self.move.moved_mb, 1),
            "seconds": round(self.seconds, 1),
        }
        return f"DEMO {json.dumps(facts)}"

    def table(self) -> str:
        """Return what each client saw, as a small table."""
        rows = [("client", "requests", "failed", "lost", "longest gap", "for")]
        rows += [
            (
                name, f"{each.requests:,}", str(each.failed), str(each.lost),
                f"{each.longest_gap_ms:.1f} ms", f"{each.seconds:.1f} s",
            )
            for name, each in self.outcomes.items()
        ]  # fmt: skip
        reasons = [f"  {name}: {each.reason}" for name, each in self.outcomes.items() if each.reason]
        moved = (
            f"  Redis was carried in {self.move.seconds:.1f} s, frozen for {self.move.frozen_ms:.0f} ms,"
            f" {self.move.moved_mb:.1f} MB"
        )
        return "\n".join([*align(rows), *reasons, moved])


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, the first to the left and the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip


class Narrator:
    """Says each step with the time since the beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def step(self, words: str) -> None:
        print(f"[{self.seconds:5.1f} s] {words}", flush=True)

    def detail(self, words: str) -> None:
        for line in words.rstrip().splitlines():
            print(f"          {line}", flush=True)

    def problem(self, words: str) -> None:
        print(f"demo: {words}", file=sys.stderr, flush=True)

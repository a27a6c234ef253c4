# SPDX-License-Identifier: Apache-2.0
"""Another round, freeze now, throttle, or refuse: decided from rates alone.  Pure.

Memory and files are sent while the program runs; what it writes meanwhile is left for the next round.  A round takes as
long as its bytes take on the link, and leaves as much as was written in that time, so rounds shrink by the factor
`written per second ÷ link` until what is left fits into the pause that is allowed, or no longer shrinks.

    pause = fixed + left ÷ link

Out of scope: how written memory is found (`track.py`), how it is sent (`source.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_LINK = 100e6
"""Bytes per second, until enough was sent to know better."""
MEASURED_BYTES = 1 << 20
"""A round that sent less says nothing of the link."""
SMALL_BYTES = 1 << 20
"""As much as is not worth another round."""
SHRINKING = 0.7
"""Another round must leave less than that part of what is left now."""
MAX_ROUNDS = 30
MARGIN = 0.8
"""The part of the allowed pause that a forecast may fill."""
THROTTLES = (0.5, 0.25, 0.1)
"""Shares of the CPU that the program had, one after the other."""


class Step(StrEnum):
    """What comes next."""

    AGAIN = "again"
    FREEZE = "freeze"
    THROTTLE = "throttle"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round did."""

    sent_bytes: int
    seconds: float
    left_bytes: int
    """Written meanwhile, to be sent next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the rounds so far say of a freeze right now."""

    link: float
    """Bytes per second."""
    written: float
    """Bytes per second that the program writes anew, each page counted once per round."""
    pause_s: float


def forecast(rounds: Sequence[Round], *, fixed_s: float) -> Forecast:
    """Say what a freeze after these rounds would cost.

    fixed_s: what a pause costs without any memory.  Raises: ValueError without a round.
    """
    if not rounds:
        raise ValueError("no round yet")
    last = rounds[-1]
    link = link_rate(rounds)
    return Forecast(
        link=link, written=last.left_bytes / max(last.seconds, 1e-3), pause_s=fixed_s + last.left_bytes / link
    )


def link_rate(rounds: Sequence[Round]) -> float:
    """Return bytes per second of the newest rounds that sent enough to tell."""
    telling = [each for each in rounds if each.sent_bytes >= MEASURED_BYTES][-2:]
    seconds = sum(each.seconds for each in telling)
    return sum(each.sent_bytes for each in telling) / seconds if seconds > 0 else DEFAULT_LINK


def decide(rounds: Sequence[Round], *, max_pause_s: float, fixed_s: float, throttled: int) -> Step:
    """Decide what comes after these rounds.

    throttled: how many of THROTTLES are in force.
    """
    last = rounds[-1]
    seen = forecast(rounds, fixed_s=fixed_s)
    fits = seen.pause_s <= max_pause_s * MARGIN
    if last.left_bytes <= SMALL_BYTES:
        return (
            Step.FREEZE if fits else Step.REFUSE
        )  # more rounds cannot help: it is the fixed part that is too long
    if len(rounds) < MAX_ROUNDS and _shrinks(rounds, seen):
        return Step.AGAIN
    if fits:
        return Step.FREEZE
    return Step.THROTTLE if throttled < len(THROTTLES) else Step.REFUSE


def _shrinks(rounds: Sequence[Round], seen: Forecast) -> bool:
    last = rounds[-1]
    expected = seen.written * last.left_bytes / seen.link
    if expected >= SHRINKING * last.left_bytes:
        return False
    # Rates flatter a program that writes the same pages again and again; what the last round brought is a fact.
    return len(rounds) < 2 or last.left_bytes < SHRINKING * rounds[-2].left_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """How the rounds of a move would end."""

    step: Step
    """FREEZE or REFUSE."""
    pause_s: float
    rounds: int
    throttled: int


def foresee(*, size_bytes: int, written: float, link: float, max_pause_s: float, fixed_s: float) -> Foreseen:
    """Play the rounds of a program that writes at a steady rate over a steady link, both in bytes per second."""
    rounds: list[Round] = []
    left, throttled = size_bytes, 0
    while True:
        share = THROTTLES[throttled - 1] if throttled else 1.0
        seconds = left / link
        sent, left = left, min(size_bytes, int(written * share * seconds))
        rounds.append(Round(sent_bytes=sent, seconds=seconds, left_bytes=left))
        step = decide(rounds, max_pause_s=max_pause_s, fixed_s=fixed_s, throttled=throttled)
        if step is Step.THROTTLE:
            throttled += 1
        elif step is not Step.AGAIN:
            pause_s = forecast(rounds, fixed_s=fixed_s).pause_s
            return Foreseen(step=step, pause_s=pause_s, rounds=len(rounds), throttled=throttled)

# SPDX-License-Identifier: Apache-2.0
"""What a move would be like: measured on the running container and on the real link, and nothing is moved."""

import math
import time

from insula.migrate import rounds
from insula.migrate.precopy import Rules, bytes_of, probe_link
from insula.migrate.track import Tracker
from insula.migrate.wire import Wire
from insula.model.migration import Accept, Offer
from insula.runtime.context import Runtime

Result = dict[str, str | int | float | bool]
LOOK_SECONDS = 1.0


def plan_move(runtime: Runtime, offer: Offer, *, wire: Wire, tracker: Tracker, rules: Rules) -> Result:
    """Have the target check everything, measure, and foresee the rounds.

    Raises: what the target refuses for; MigrationFailed.
    """
    wire.send(offer)
    wire.expect(Accept)
    link = probe_link(wire)
    began = time.monotonic()
    size = bytes_of(tracker.scan())
    runtime.closing.wait(LOOK_SECONDS)
    written = bytes_of(tracker.scan()) / (time.monotonic() - began)
    seen = rounds.foresee(
        size_bytes=size + offer.disk_bytes,
        written=written,
        link=link,
        max_pause_s=rules.max_pause_s,
        fixed_s=rules.fixed_s,
    )
    verdict = "moves" if seen.step is rounds.Step.FREEZE else "is refused: it would stand still for too long"
    if seen.throttled:
        verdict += f", slowed down to {rounds.THROTTLES[seen.throttled - 1]:.0%} of its CPU time meanwhile"
    return {
        "tracker": tracker.kind,
        "memory_bytes": size,
        "file_bytes": offer.disk_bytes,
        "link_bytes_per_s": round(link),
        "written_bytes_per_s": round(written),
        "rounds": seen.rounds,
        "pause_ms": round(seen.pause_s * 1000, 1),
        "max_pause_ms": round(rules.max_pause_s * 1000) if math.isfinite(rules.max_pause_s) else 0,
        "verdict": verdict,
    }

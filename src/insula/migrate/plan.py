# SPDX-License-Identifier: Apache-2.0
"""What a move would be like: measured on the running container and on the real link, and nothing is moved."""

import math
import time
from dataclasses import dataclass

from insula.migrate import rounds
from insula.migrate.lend import LaterTracker, check_can_pull
from insula.migrate.packed import PACKING, PackedSource
from insula.migrate.precopy import Rules, Written, bytes_of, probe_link, samples
from insula.migrate.shared import SharedSource
from insula.migrate.squeeze import plain_rate
from insula.migrate.track import Tracker
from insula.migrate.wire import ZSTD, Wire
from insula.model.migration import Accept, Offer
from insula.model.units import format_size
from insula.runtime.context import Runtime

Result = dict[str, str | int | float | bool]
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What there is to carry, and how it is measured."""

    tracker: Tracker
    shared: SharedSource
    packed: PackedSource
    rules: Rules

    def changed(self) -> tuple[Written, int]:
        """Return the pages of private and the bytes of shared memory written since the last call; at first, all."""
        return self.tracker.scan(), self.shared.look()

    def later_bytes(self) -> int:
        """Return how much private memory is to be pulled after the commit."""
        return self.tracker.size_bytes() if isinstance(self.tracker, LaterTracker) else 0


def plan_move(runtime: Runtime, offer: Offer, *, wire: Wire, load: Load) -> Result:
    """Have the target check everything, measure, and foresee the rounds.

    Raises: what the target refuses for; MigrationFailed.
    """
    wire.send(offer)
    accepted = wire.expect(Accept)
    check_can_pull(offer, accepted)
    link, rules = probe_link(wire), load.rules
    memory, shared_size = load.changed()
    size, began = bytes_of(memory), time.monotonic()
    rate = plain_rate(link, samples(memory)) if ZSTD in accepted.unpacks else link
    runtime.closing.wait(LOOK_SECONDS)
    again, shared_again = load.changed()
    written = (bytes_of(again) + shared_again) / (time.monotonic() - began)
    packed = load.packed.dirty_estimate()
    seen = rounds.foresee(
        size_bytes=size + shared_size + offer.disk_bytes,
        written=written,
        link=rate,
        max_pause_s=rules.max_pause_s,
        fixed_s=rules.fixed_s + packed / link,
    )
    verdict = "moves" if seen.step is rounds.Step.FREEZE else "is refused: it would stand still for too long"
    if seen.throttled:
        verdict += f", slowed down to {rounds.THROTTLES[seen.throttled - 1]:.0%} of its CPU time meanwhile"
    later = load.later_bytes()
    if later:
        verdict += f"; {format_size(later)} of memory follow: a source that dies before they are there takes it along"
    return {
        "tracker": load.tracker.kind,
        "memory_bytes": size,
        "later_bytes": later,
        "shared_bytes": shared_size,
        "tmpfs_bytes": packed // PACKING,
        "file_bytes": offer.disk_bytes,
        "link_bytes_per_s": round(link),
        "packed_bytes_per_s": round(rate),
        "written_bytes_per_s": round(written),
        "rounds": seen.rounds,
        "pause_ms": round(seen.pause_s * 1000, 1),
        "max_pause_ms": round(rules.max_pause_s * 1000) if math.isfinite(rules.max_pause_s) else 0,
        "verdict": verdict,
    }

# SPDX-License-Identifier: Apache-2.0
"""What containers used during the last hour, as it is kept and told.  Pure.

Times are UTC seconds since the epoch unless a name says otherwise.
"""

from typing import NamedTuple

from insula.model.record import Fact

KEPT_S = 3600.0
"""How far back the figures go."""
INTERVAL_S = 5.0
"""Between two samples."""


class CallShare(NamedTuple):
    """How often a system call was made, or failed so."""

    call: str
    error: str
    """As `ENOENT`; empty: all calls, whatever came of them."""
    times: int


class Sample(NamedTuple):
    """What one container used since the sample before; memory and processes: now."""

    container: str
    seconds: float
    """Since then."""
    cpu_us: int
    memory_bytes: int
    pids: int
    cpu_wait_us: int | None
    """Pressure: for how long at least one process waited for a processor; None: this kernel does not say."""
    memory_wait_us: int | None
    io_wait_us: int | None
    read_bytes: int
    written_bytes: int
    received_bytes: int
    sent_bytes: int
    calls: int | None = None
    """System calls; None: nobody counted them."""
    failures: int | None = None
    shares: tuple[CallShare, ...] = ()
    """The most frequent of them."""


class Usage(Fact, kw_only=True, frozen=True):
    """What a container used in a span of time."""

    id: str
    name: str
    at: float
    """The span's last sample."""
    seconds: float
    """How much of the span was looked at: while it ran here, and insulad ran."""
    cpu_us: int
    cpu_peak_percent: float
    """Of the busiest sample; 100 is one whole processor."""
    memory_bytes: int
    """On the average."""
    memory_peak_bytes: int
    pids_peak: int
    cpu_wait_us: int | None
    memory_wait_us: int | None
    io_wait_us: int | None
    read_bytes: int
    written_bytes: int
    received_bytes: int
    sent_bytes: int
    counted_seconds: float = 0.0
    """How much of it somebody counted system calls."""
    calls: int = 0
    failures: int = 0
    top_calls: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it
    """Most frequent first."""
    top_errors: dict[str, int] = {}  # noqa: RUF012
    """As `openat ENOENT`."""

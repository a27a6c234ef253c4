# SPDX-License-Identifier: Apache-2.0
"""What leaves this host without a reader who asks: events on their way to a sink, and how many went and were lost.  Pure."""

from dataclasses import dataclass

from insula.model.change import Alarm, Change, ProfileDrift
from insula.model.monitor import Event, Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Something that was seen of a container, redacted already."""

    host: str
    tenant: str
    container: str
    name: str
    at: float
    """UTC seconds since the epoch."""
    what: Event | Change | Lost

    @property
    def is_alarming(self) -> bool:
        """Whether somebody should look: an alarm of a rule, what a profile lacks, or that not all was seen."""
        return isinstance(self.what, Lost | Alarm | ProfileDrift)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkCounts:
    """What became of what was meant for a sink since insulad began."""

    sink: str
    sent: int = 0
    dropped: int = 0
    """More came than waited for: the oldest went."""
    refused: int = 0
    """It was told, and did not want it."""
    failures: int = 0
    """Tries that failed; what they carried was tried again."""
    waiting: int = 0

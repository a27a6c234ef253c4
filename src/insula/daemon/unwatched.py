# SPDX-License-Identifier: Apache-2.0
"""The gap that a stop of insulad leaves: containers ran on while no rule, export or profile heard of them.

What they did then cannot be had any more; that it is missing is told, once for each, with the changes.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from insula.model.change import Change
from insula.model.record import ContainerRecord

LOG = logging.getLogger(__name__)


def tell_unwatched(
    records: Iterable[ContainerRecord], *, last_at: float | None, announce: Callable[[Change], None]
) -> None:
    """Tell of containers that are watched from now on that they ran before, unwatched.

    last_at: when an insulad was last known to be there, UTC seconds; None, or before a container's start: since that.
    """
    now = time.time()
    for record in records:
        since = max(last_at or 0.0, record.started_at)
        detail = f"from {datetime.fromtimestamp(since, UTC):%Y-%m-%dT%H:%M:%SZ} on, for {now - since:.0f} s: insulad was down"
        announce(
            Change(
                at=now,
                container=record.id,
                name=record.name,
                tenant=record.tenant,
                event="unwatched",
                detail=detail,
            )
        )
        fields = {"container": record.id[:12], "tenant": record.tenant, "seconds": round(now - since)}
        LOG.warning("a container was not watched for a while", extra={"fields": fields})

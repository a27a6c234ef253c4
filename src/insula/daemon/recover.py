# SPDX-License-Identifier: Apache-2.0
"""What is done once at the start of insulad, before anybody is served: take up what the last one left."""

import logging
import time

from msgspec.structs import replace

from insula.model.record import ErrorBody, OperationStatus
from insula.runtime.ledger import Ledger

LOG = logging.getLogger(__name__)


def recover_operations(store: Ledger, *, resumed: frozenset[str] = frozenset()) -> int:
    """Mark operations that the last daemon did not end as failed, except those that their owner resumes."""
    interrupted = [
        record for record in store.list_operations(status=OperationStatus.RUNNING) if record.id not in resumed
    ]
    for record in interrupted:
        error = ErrorBody(
            code="interrupted",
            message=f"cannot finish `{record.kind}` of `{record.subject}`: insulad was stopped",
            hint="begin it again",
        )
        store.save_operation(
            replace(
                record,
                status=OperationStatus.FAILED,
                may_cancel=False,
                error=error,
                finished_at=time.time(),
            )
        )
    if interrupted:
        LOG.warning("operations were interrupted", extra={"fields": {"count": len(interrupted)}})
    return len(interrupted)

# SPDX-License-Identifier: Apache-2.0
"""Wait until a descriptor can be read: poll(2), for select(2) knows none above 1023, and an insulad of many users has those."""

import select


def wait_readable(*descriptors: int, seconds: float | None = None) -> frozenset[int]:
    """Wait until one of some descriptors can be read, has ended, or failed.

    seconds: at most; None: for ever; of a pidfd: until the process has ended.  Returns: those; none: the time is over.
    """
    waiting = select.poll()
    for each in descriptors:
        waiting.register(each, select.POLLIN)
    milliseconds = None if seconds is None else max(0.0, seconds) * 1000
    return frozenset(descriptor for descriptor, _events in waiting.poll(milliseconds))

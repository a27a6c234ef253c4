# SPDX-License-Identifier: Apache-2.0
"""Write all of something: pwrite(2) may take less, at a limit, a full disk or a signal."""

import os


def write_at(descriptor: int, data: bytes | bytearray | memoryview, place: int) -> None:
    """Write all of it at a place of a file.  Raises: OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, place)
        rest, place = rest[written:], place + written

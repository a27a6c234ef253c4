# SPDX-License-Identifier: Apache-2.0
"""What the system says of a disk that is made, mounted or resized, in our errors with their cure."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from insula.model.errors import Conflict, DiskFull, InsulaError, LimitRefused, Unsupported


@contextmanager
def explained(
    doing: str, *, passes: int = 0, if_full: str = "its files need more: give it a larger one"
) -> Iterator[None]:
    """Turn what the system says of a disk into our errors, all but the errno that passes.

    doing: as in "cannot make the disk of tenant `a`".  if_full: the cure if there is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno == passes:
            raise
        raise _kind_of(error)(
            f"cannot {doing}: {error.strerror}", hint=_cure_of(error, if_full=if_full)
        ) from error


def _kind_of(error: OSError) -> type[InsulaError]:
    kinds: dict[int | None, type[InsulaError]] = {
        errno.ENOSPC: DiskFull,
        errno.EDQUOT: DiskFull,
        errno.ENOENT: Unsupported,
        errno.ENODEV: Unsupported,
        errno.EBUSY: Conflict,
    }
    return kinds.get(error.errno, LimitRefused)


def _cure_of(error: OSError, *, if_full: str) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return if_full
        case errno.ENOENT | errno.ENODEV:
            return "apt-get install e2fsprogs; modprobe loop; the kernel needs ext4"
        case _:
            return ""

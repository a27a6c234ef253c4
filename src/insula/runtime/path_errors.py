# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a path inside a container, as an error for people.  Standard library only."""

import errno
import os

from insula.model.errors import Denied, DiskFull, InsulaError, PathEscapes, PathNotFound, Unsupported


def explain(error: OSError, path: str) -> InsulaError:
    """Turn what the kernel says of a path in a container into an error for people."""
    reason = os.strerror(error.errno or 0).lower()
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return PathNotFound(f"cannot find `{path}` in the container: {reason}")
        case errno.ELOOP | errno.EXDEV:
            return PathEscapes(f"cannot open `{path}`: {reason}, or a link of /proc that leads elsewhere")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Denied(f"cannot open `{path}`: {reason}")
        case errno.ENOSPC | errno.EDQUOT:
            return DiskFull(f"cannot copy `{path}`: {reason}", hint="free some space")
        case _:
            return Unsupported(f"cannot copy `{path}`: {reason}")

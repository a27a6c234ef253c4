# SPDX-License-Identifier: Apache-2.0
"""What CRIU packs of a container's own tmpfs, in the pause, without compressing it.

CRIU runs `tar --gzip`, and tar looks for `gzip` in PATH: it takes 40 to 60 ms for a MB that cannot be compressed, and while a
container moves every piece is compressed where that is measured to pay (`migrate/squeeze.py`).  So the first `gzip` that a
CRIU of ours finds hands on what it gets, in both directions.  Standard library only.
Sources: CRIU's `criu/filesystems.c`, `tmpfs_dump` and `tmpfs_restore`; tar(1), --gzip.
"""

import os

_FOLDER = "/run/bin"
_SCRIPT = "#!/bin/sh\nexec cat\n"
PATH = f"{_FOLDER}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def place() -> None:
    """Put our `gzip` below CRIU's own /run.  It is executed as the container's root.  Raises: OSError."""
    os.mkdir(_FOLDER, 0o755)
    descriptor = os.open(f"{_FOLDER}/gzip", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o755)
        file.write(_SCRIPT)
    os.chmod(_FOLDER, 0o755)

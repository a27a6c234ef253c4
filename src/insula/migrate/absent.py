# SPDX-License-Identifier: Apache-2.0
"""Complete CRIU's images with what it was not shown (`runtime/hidden.py`): which pages there are, and guard regions.

Out of scope: the pages themselves, and the target's checks of these lists (memory.py).
"""

import os
from collections.abc import Mapping, Sequence

from insula.kernel import criu_unseen
from insula.kernel.pagemap import Range, intersect
from insula.migrate.precopy import inner_pid
from insula.migrate.track import Last
from insula.model.errors import MigrationFailed
from insula.runtime.dump import write_file


def complete_images(images: int, last: Mapping[int, Last], *, hidden: Mapping[int, Sequence[Range]]) -> None:
    """Write into the folder of images what CRIU could not.

    last: of all processes, by their ids here, taken while they stood.  hidden: what CRIU was not shown; empty: nothing.
    Raises: MigrationFailed if a process is unknown; nothing may be lost.
    """
    if not hidden:
        return
    for pid, ranges in hidden.items():
        inside = inner_pid(pid)
        if pid not in last or inside is None:
            raise MigrationFailed(f"cannot move process {pid}: its pages are not known")
        pages = intersect(last[pid].present, ranges)
        write_file(images, criu_unseen.lazy_name(inside), criu_unseen.encode_lazy(pages))
    for pid, each in last.items():
        if each.guarded and (inside := inner_pid(pid)) is not None:
            _add_guards(images, inside, each.guarded)


def _add_guards(images: int, pid: int, guarded: Sequence[Range]) -> None:
    name = f"mm-{pid}.img"
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=images)
    except FileNotFoundError:
        return  # not of the container's tree
    with os.fdopen(descriptor, "rb") as file:
        data = file.read()
    write_file(images, name, criu_unseen.add_guards(data, guarded))

# SPDX-License-Identifier: Apache-2.0
"""Complete CRIU's images with what it was not shown (`runtime/hidden.py`): which pages there are, reserves, and guard regions.

Whatever CRIU did not list of private anonymous memory is listed here, hidden or not, and what it left out of a changed file
mapping ends the move: a CRIU that reads its page maps in another way loses nothing.

Out of scope: the pages themselves, and the target's checks of these lists (memory.py).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from insula.kernel import criu_images, criu_unseen
from insula.kernel.pagemap import Range, intersect, merge, subtract
from insula.migrate.precopy import inner_pid
from insula.migrate.track import Last
from insula.model.errors import MigrationFailed
from insula.runtime.dump import write_file
from insula.runtime.hidden import Seen

LOG = logging.getLogger(__name__)


def list_hidden(
    images: int, last: Mapping[int, Last], *, seen: Mapping[int, Seen], earlier: Sequence[str] = ()
) -> tuple[str, ...]:
    """List in the folder of images which of the hidden pages there are; CRIU may still be at work.

    last: of all processes, by their ids here, taken while they stood.  seen: how much CRIU sees; empty: everything.
    earlier: lists of a freeze that was given up; they are empty now, unless they are made anew.
    Returns: the names of the lists.
    """
    names = list(earlier)
    for name in earlier:
        write_file(images, name, b"")
    for pid, each in seen.items():
        if pid in last and (inside := inner_pid(pid)) is not None:
            names.append(name := criu_unseen.lazy_name(inside))
            pages = intersect(last[pid].present, each.hidden)
            write_file(images, name, criu_unseen.encode_lazy(pages))
    return tuple(dict.fromkeys(names))


def complete_images(images: int, last: Mapping[int, Last], *, seen: Mapping[int, Seen]) -> None:
    """Write into the folder of images what else CRIU could not.  As `list_hidden`, which comes before.

    Raises: MigrationFailed if a page would be lost.
    """
    if not seen:
        return
    for pid, each in seen.items():
        inside = inner_pid(pid)
        if pid not in last or inside is None:
            raise MigrationFailed(f"cannot move process {pid}: its pages are not known")
        listed = _listed(images, inside)
        _check(last[pid].present, each, listed=listed, pid=inside)
        shown = subtract(each.anonymous, each.hidden)
        if pages := subtract(intersect(last[pid].present, shown), listed):
            write_file(images, criu_unseen.rest_name(inside), criu_unseen.encode_lazy(pages))
        if each.reserves:
            _change_mappings(images, inside, partial(criu_unseen.add_reserves, reserves=each.reserves))
    for pid, known in last.items():
        if known.guarded and (inside := inner_pid(pid)) is not None:
            _change_mappings(images, inside, partial(criu_unseen.add_guards, guards=known.guarded))


def _listed(images: int, pid: int) -> tuple[Range, ...]:
    try:
        entries = criu_images.decode_pagemap(criu_images.read_image(images, f"pagemap-{pid}.img"))
    except (OSError, ValueError) as error:
        raise MigrationFailed(f"cannot move process {pid}: its page map cannot be read: {error}") from error
    return merge(Range(each.vaddr, each.pages) for each in entries)


def _check(present: Sequence[Range], seen: Seen, *, listed: Sequence[Range], pid: int) -> None:
    lost = subtract(intersect(present, seen.of_files), listed)
    if lost:
        raise MigrationFailed(
            f"cannot move process {pid}: CRIU left out {sum(each.pages for each in lost)} changed pages of files",
            hint="this CRIU is not known: `insula setup` brings one that is",
        )
    if intersect(seen.hidden, listed):
        LOG.warning("CRIU saw memory that was hidden from it", extra={"fields": {"pid": pid}})


def _change_mappings(images: int, pid: int, change: Callable[[bytes], bytes]) -> None:
    name = f"mm-{pid}.img"
    try:
        data = criu_images.read_image(images, name)
    except FileNotFoundError:
        return  # not of the container's tree
    write_file(images, name, change(data))

# SPDX-License-Identifier: Apache-2.0
"""What a dump says of its processes must not be more than the container may have: looked at before CRIU starts.

Images tell CRIU which ids, capabilities and filter each process gets.  A seal says who wrote them; this says what they may ask
for, so that a host that was taken over cannot hand on more than its containers' own rights.  Maps of ids, mounts, cgroups and
network come from the store anyway (`plan`).  Out of scope: memory and files, which are the program's own.

Sources: CRIU's `images/core.proto`, `images/creds.proto`, `include/magic.h`; ADR 14.
"""

import os
import re

from insula.kernel import caps
from insula.model.errors import CheckpointAltered
from insula.runtime.image_fields import Fields, entry_of, fields_of, message, number

MAX_ID = 65535
_CORE_NAME = re.compile(r"core-([1-9][0-9]*)\.img")
CORE_MAGIC = 0x55053847

# core_entry; task_core_entry; thread_core_entry; creds_entry.
TASK, THREAD = 3, 5
_STATE, _ALIVE = 1, frozenset((1, 3, 5))
"""task_state: alive, stopped, a thread.  Others run nothing."""
_CREDENTIALS, FILTER_MODE = 10, 11
_IDS, _GROUPS = range(1, 9), 14
_CAPABILITIES = {9: "inheritable", 10: "permitted", 11: "effective", 12: "bounding", 19: "ambient"}
_NO_NEW_PRIVILEGES = 18
_FILTERED = 2


def check_rights(images: int, *, capabilities: frozenset[str], has_filter: bool) -> None:
    """Look at every process of a dump.

    images: a folder of images in clear.    capabilities: the container's.
    Raises: CheckpointAltered naming the process and what it would have; OSError.
    """
    for name in sorted(os.listdir(images)):
        if match := _CORE_NAME.fullmatch(name):
            try:
                _check_core(
                    entry_of(images, name, magic=CORE_MAGIC), capabilities=capabilities, has_filter=has_filter
                )
            except ValueError as error:
                raise CheckpointAltered(f"cannot restore process {match[1]}: {error}") from error


def _check_core(core: Fields, *, capabilities: frozenset[str], has_filter: bool) -> None:
    state = number(fields_of(message(core, TASK)), _STATE, default=1) if TASK in core else 1
    if THREAD not in core:
        if state in _ALIVE:
            raise ValueError("its image names no rights")
        return
    thread = fields_of(message(core, THREAD))
    # CRIU tells the filter of a process by its first thread, and gives it to all of them (`seccomp.c`, TSYNC).
    is_silent_thread = TASK not in core and FILTER_MODE not in thread
    if has_filter and not is_silent_thread and number(thread, FILTER_MODE) != _FILTERED:
        raise ValueError("it would run without a seccomp filter")
    if _CREDENTIALS not in thread:
        raise ValueError("its image names no rights")
    _check_credentials(fields_of(message(thread, _CREDENTIALS)), caps.to_mask(capabilities))


def _check_credentials(credentials: Fields, allowed: int) -> None:
    ids = [value for field in (*_IDS, _GROUPS) for value in credentials.get(field, ())]
    if not all(isinstance(value, int) and value <= MAX_ID for value in ids):
        raise ValueError(f"it would have an id that is not within 0 to {MAX_ID}")
    for field, kind in _CAPABILITIES.items():
        words = [value for value in credentials.get(field, ()) if isinstance(value, int)]
        mask = sum(value << 32 * place for place, value in enumerate(words))
        if more := mask & ~allowed:
            names = ", ".join(sorted(caps.from_mask(more))) or hex(more)
            raise ValueError(f"it would have capabilities that the container has not: {names} ({kind})")
    if not number(credentials, _NO_NEW_PRIVILEGES):
        raise ValueError("it could gain rights by setuid files")

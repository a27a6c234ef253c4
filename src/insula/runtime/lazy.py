# SPDX-License-Identifier: Apache-2.0
"""A dump that leaves memory out, and a restore that runs before its memory is there.

CRIU's lazy dump ends by serving the pages it left out, on a TCP port for anybody, also when we refused it.  Ours come another
way: by its configuration file CRIU gets a socket instead, whose other end is closed already, so that it serves nobody and ends
at once; a refused program then runs on, an accepted one is killed.

A lazy restore makes a userfaultfd in each process and gives it to the filler (`boot/filler.py`).

Out of scope: where the pages come from (`migrate/memory.py`).  Source: CRIU's `criu/cr-dump.c` (`cr_lazy_mem_dump`),
`criu/page-xfer.c` (`cr_page_server`), `criu/uffd.c`.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from insula.boot.engine import FIRST_INHERITED_FD
from insula.kernel import criu_images, userfault_permit
from insula.kernel.readable import wait_readable
from insula.model.errors import CheckpointFailed, RestoreFailed, Unsupported
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime

_SOCKET_FD = FIRST_INHERITED_FD
_CONFIG_FD = FIRST_INHERITED_FD + 1
CONFIG_FILE = f"/proc/self/fd/{_CONFIG_FD}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The pages that a lazy dump left out.  store: sparse file; slots: pid in the container → its place there."""

    store: int
    slots: Mapping[int, int]
    bring: Callable[[], None] | None = None
    """Begins to bring them into the store (`supply.py`); None: they are there."""


def dump_descriptors(held: ExitStack) -> tuple[int, int]:
    """Make what the CRIU of a lazy dump inherits: the socket that it serves nobody by, and its configuration."""
    ours, theirs = socket.socketpair()
    ours.close()
    held.callback(theirs.close)
    config = os.memfd_create("criu-lazy", os.MFD_CLOEXEC)
    held.callback(os.close, config)
    os.write(config, b"ps-socket %d\n" % _SOCKET_FD)
    return theirs.fileno(), config


def wait_filled(runtime: Runtime, record: ContainerRecord, *, seconds: float) -> None:
    """Wait until a container's memory is there.

    Raises: CheckpointFailed if that takes longer, or does not go on.
    """
    deadline = time.monotonic() + seconds
    while True:
        filling, pidfd = runtime.spawner.filling(record.id)
        if filling.state == "failed":
            raise CheckpointFailed(f"cannot checkpoint `{record.name}`: {filling.reason}")
        if pidfd < 0:
            return
        try:
            left = deadline - time.monotonic()
            if not wait_readable(pidfd, seconds=left):
                raise CheckpointFailed(
                    f"cannot checkpoint `{record.name}`: {filling.left_bytes >> 20} MiB of its memory are still on"
                    " their way",
                    hint="try again in a moment",
                )
        finally:
            os.close(pidfd)


def left_bytes(runtime: Runtime, container_id: str) -> int:
    """Return how much of a container's memory is still to be filled."""
    filling, pidfd = runtime.spawner.filling(container_id)
    if pidfd >= 0:
        os.close(pidfd)
    return filling.left_bytes if filling.state == "filling" else 0


def wait_for_filler(runtime: Runtime, container_id: str, *, seconds: float) -> bool:
    """Wait until nobody fills a container's memory any more.  Returns: False if that lasts longer."""
    _filling, pidfd = runtime.spawner.filling(container_id)
    if pidfd < 0:
        return True
    try:
        return bool(wait_readable(pidfd, seconds=seconds))
    finally:
        os.close(pidfd)


class Restore:
    """The lazy side of one restore; does nothing without memory.  Use as a context manager around CRIU."""

    def __init__(
        self, runtime: Runtime, record: ContainerRecord, *, images: int, memory: Memory | None
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._images = images
        self._memory = memory
        self._permitted = ExitStack()

    def __enter__(self) -> Self:
        if self._memory is not None:
            self._runtime.spawner.fill(
                self._record.id,
                images=self._images,
                store=self._memory.store,
                slots=self._memory.slots,
                is_later=self._memory.bring is not None,
            )
            if self._memory.bring is not None:
                self._memory.bring()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._permitted.close()

    def permit(self) -> None:
        """Let the processes make their userfaultfds, from now until `check`.  Raises: Unsupported."""
        if self._memory is not None:
            try:
                self._permitted.enter_context(userfault_permit.permit())
            except OSError as error:
                raise Unsupported(f"cannot restore `{self._record.name}` lazily: {error}") from error

    def check(self) -> None:
        """Make sure that every process's memory is in the filler's hands.  Raises: RestoreFailed."""
        self._permitted.close()
        if self._memory is None:
            return
        expected = sum(criu_images.pid_of(name) is not None for name in os.listdir(self._images))
        filling, pidfd = self._runtime.spawner.filling(self._record.id)
        if pidfd >= 0:
            os.close(pidfd)
        if filling.state != "filling" or filling.memories != expected:
            reason = filling.reason or f"{filling.memories} of {expected} processes can be filled"
            raise RestoreFailed(f"cannot restore `{self._record.name}`: its memory does not arrive: {reason}")

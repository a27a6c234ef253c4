# SPDX-License-Identifier: Apache-2.0
"""Unpack a tenant's upload in a process of the tenant's cgroup: its processors, its memory, its share.

What unpacks in insulad takes the interpreter from everybody's requests.  The process is `image/unpack_worker.py`; it is
moved before it gets its first byte, and its cgroup (`charged.py`) goes with it.
"""

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from insula.image.layers import Filled, Filler
from insula.image.tarball import Limits
from insula.image.tarheader import ByteSource
from insula.model.errors import InsulaError, LimitRefused, from_code
from insula.runtime.charged import Charge, charged_group
from insula.runtime.context import Runtime
from insula.runtime.worker_words import worker_words

CHUNK_BYTES = 1 << 18
CHECK_S = 0.5
"""How soon it ends that is not wanted any more, while the worker is slow."""
REST_S, MAX_REST_S = 1.0, 10.0
"""After each archive that was refused its tenant's next one waits so long; for all of them together at most."""


class Unpacking:
    """What unpacks uploads.  From any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rests: dict[str, Rest] = {}
        self._guard = threading.Lock()

    def filler_of(self, tenant: str, check: Callable[[], None]) -> Filler:
        """Return what fills folders of a tenant at the tenant's cost.  check: asked meanwhile; raises to end it."""

        def fill(stream: ByteSource, root_fd: int, *, limits: Limits | None) -> Filled:
            with self._guard:
                wait_s = self._rest_of(tenant).wait_s(time.monotonic())
            self._runtime.closing.wait(wait_s)
            try:
                with (
                    charged_group(self._runtime, tenant, charge=Charge.UNPACK) as group,
                    _worker(root_fd, limits or Limits()) as process,
                ):
                    if group is not None:
                        with suppress(ProcessLookupError):  # it has failed already
                            group.attach(process.pid)
                    return _fill(process, stream, check=check)
            except InsulaError:
                with self._guard:
                    self._rest_of(tenant).add(time.monotonic())
                raise

        return fill

    def _rest_of(self, tenant: str) -> "Rest":
        return self._rests.setdefault(tenant, Rest())


@dataclass(slots=True)
class Rest:
    """How long a tenant has to wait that sent what was refused: a process for each bomb is work of insulad's, too."""

    until: float = 0.0
    """Monotonic seconds."""

    def add(self, now: float) -> None:
        self.until = min(max(now, self.until) + REST_S, now + MAX_REST_S)

    def wait_s(self, now: float) -> float:
        return max(0.0, self.until - now)


def _fill(process: subprocess.Popen[bytes], stream: ByteSource, *, check: Callable[[], None]) -> Filled:
    if process.stdin is not None:
        _feed(stream, process.stdin, check=check)
    while True:
        try:
            out, said = process.communicate(timeout=CHECK_S)
            break
        except subprocess.TimeoutExpired:
            check()
    if process.returncode:
        raise _failure_of(said)
    return Filled(*json.loads(out))


@contextmanager
def _worker(root_fd: int, limits: Limits) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [
            *worker_words("insula.image.unpack_worker"),
            *map(str, (root_fd, limits.entries, limits.size_bytes)),
        ],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(root_fd,),
        cwd="/",
        env={"LC_ALL": "C.UTF-8"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _feed(stream: ByteSource, pipe: IO[bytes], *, check: Callable[[], None]) -> None:
    os.set_blocking(pipe.fileno(), False)
    with suppress(BrokenPipeError):  # the worker has stopped, and says why
        while chunk := stream.read(CHUNK_BYTES):
            rest = memoryview(chunk)
            while rest:
                rest = rest[_write_some(rest, pipe.fileno(), check=check) :]


def _write_some(data: memoryview, descriptor: int, *, check: Callable[[], None]) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while not poll.poll(CHECK_S * 1000):
        check()
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # room for less than the kernel takes at once
        return 0


def _failure_of(said: bytes) -> InsulaError:
    try:
        fields = json.loads(said)
        return from_code(str(fields["code"]), str(fields["message"]), hint=str(fields["hint"]))
    except (ValueError, KeyError, TypeError):
        reason = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return LimitRefused(
            f"cannot unpack the image: {reason or 'the process was killed'}",
            hint=""
            if reason
            else "the tenant's memory is used up: stop some of its containers, or raise its limit",
        )

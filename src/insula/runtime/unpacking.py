# SPDX-License-Identifier: Apache-2.0
"""Unpack a tenant's upload in a process of the tenant's cgroup: its processors, its memory, its share.

What unpacks in insulad takes the interpreter from everybody's requests.  The process is `image/unpack_worker.py`; it is
moved before it gets its first byte, and its cgroup goes with it.  A tenant without containers gets its limits here, too.
"""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import insula
from insula.image.layers import Filled, Filler
from insula.image.tarball import Limits
from insula.image.tarheader import ByteSource
from insula.kernel.cgroup import Group
from insula.model.errors import InsulaError, LimitRefused, from_code
from insula.runtime import quotas
from insula.runtime.context import Runtime
from insula.runtime.undo import attempt

CHUNK_BYTES = 1 << 18
REST_S, MAX_REST_S = 1.0, 10.0
"""After each archive that was refused its tenant's next one waits so long; for all of them together at most."""
LEAVING_SECONDS = 5.0
"""For the kernel to let go of the cgroup."""


class Unpacking:
    """What unpacks uploads.  From any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rests: dict[str, Rest] = {}
        self._guard = threading.Lock()

    def filler_of(self, tenant: str) -> Filler:
        """Return what fills folders of a tenant at the tenant's cost."""

        def fill(stream: ByteSource, root_fd: int, *, limits: Limits | None) -> Filled:
            with self._guard:
                wait_s = self._rest_of(tenant).wait_s(time.monotonic())
            self._runtime.closing.wait(wait_s)
            try:
                return _fill(self._runtime, tenant, stream, root_fd=root_fd, limits=limits or Limits())
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


def _fill(runtime: Runtime, tenant: str, stream: ByteSource, *, root_fd: int, limits: Limits) -> Filled:
    with _group(runtime, tenant) as group, _worker(root_fd, limits) as process:
        if group is not None:
            with suppress(ProcessLookupError):  # it has failed already
                group.attach(process.pid)
        if process.stdin is not None:
            _feed(stream, process.stdin)
        out, said = process.communicate()
        if process.returncode:
            raise _failure_of(said)
        return Filled(*json.loads(out))


@contextmanager
def _group(runtime: Runtime, tenant: str) -> Iterator[Group | None]:
    if not runtime.spawner.knows_tenants:
        yield None
        return
    quotas.ready_group(runtime, tenant)
    group = Group(runtime.hierarchies(), runtime.tenant_parent(tenant), f"unpack-{secrets.token_hex(6)}")
    try:
        try:
            group.create()
        except OSError as error:
            raise LimitRefused(
                f"cannot unpack within the limits of tenant `{tenant}`: {error.strerror}"
            ) from error
        yield group
    finally:
        attempt(group.delete, time.monotonic() + LEAVING_SECONDS)


@contextmanager
def _worker(root_fd: int, limits: Limits) -> Iterator[subprocess.Popen[bytes]]:
    folder = str(Path(insula.__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r}); from insula.image import unpack_worker as w; sys.exit(w.main())"
    words = [sys.executable, "-I", "-c", code, str(root_fd), str(limits.entries), str(limits.size_bytes)]
    process = subprocess.Popen(
        words,
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


def _feed(stream: ByteSource, pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # the worker has stopped, and says why
        while chunk := stream.read(CHUNK_BYTES):
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(pipe.fileno(), rest) :]


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

# SPDX-License-Identifier: Apache-2.0
"""Run the program of a build at its tenant's cost: in the tenant's cgroup, as the tenant's ids, on the tenant's disk.

The program is root of a user namespace of the tenant's ids and of nothing else (`build_worker.py`).  What it writes lies
below the tenant's place, so it counts against the tenant's disk if it has one:

    STATE/builds/…  or  STATE/tenants/<tenant>/disk/builds/…

Out of scope: which program (`image/debian.py`), its time, how many at once (`daemon/operations.py`).
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from insula.image.debian import Starter
from insula.kernel.cgroup import Group
from insula.model.errors import InvalidImage, LimitRefused
from insula.runtime.charged import LEAVING_SECONDS, Charge, charged_group, let_begin
from insula.runtime.context import Runtime
from insula.runtime.trees import remove_tree
from insula.runtime.worker_words import worker_words

FOLDER = "builds"
_PASSED_ON = ("PATH", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Of insulad's environment; the rest is nobody's business."""
_SHARED_FOLDER = 0o1777


class Building:
    """What starts the programs of builds.  From any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def starter_of(self, tenant: str) -> Starter:
        """Return what starts programs at a tenant's cost."""
        runtime = self._runtime

        @contextmanager
        def start(
            words: Sequence[str], *, environment: Mapping[str, str], log: IO[bytes]
        ) -> Iterator[subprocess.Popen[bytes]]:
            base = runtime.uid_base_of(tenant)
            with (
                _folder(runtime, tenant, uid_base=base) as folder,
                charged_group(runtime, tenant, charge=Charge.BUILD) as group,
                separated(
                    words, uid_base=base, folder=folder, group=group, environment=environment, log=log
                ) as process,
                _memory_explained(group, tenant),
            ):
                yield process

        return start


def remove_leftovers(state: Path) -> None:
    """Remove what builds of an earlier insulad wrote.  Call once their processes have ended (`charged.end_leftovers`)."""
    for pattern in (f"{FOLDER}/*", f"tenants/*/disk/{FOLDER}/*"):
        for folder in state.glob(pattern):
            remove_tree(folder)


@contextmanager
def _folder(runtime: Runtime, tenant: str, *, uid_base: int) -> Iterator[Path]:
    home = runtime.home_of(tenant)
    place = (runtime.folders.state if home is None else home.parent) / FOLDER
    place.mkdir(mode=0o700, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place))
    try:
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchmod(descriptor, _SHARED_FOLDER)
        os.fchown(descriptor, uid_base, uid_base)
        os.close(descriptor)
        yield made
    finally:
        remove_tree(made)


@contextmanager
def separated(
    words: Sequence[str],
    *,
    uid_base: int,
    folder: Path,
    group: Group | None,
    environment: Mapping[str, str],
    log: IO[bytes],
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program as root of the ids from `uid_base` on, alone, with a folder as its /tmp; it ends with the block."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    process = subprocess.Popen(
        [*worker_words("insula.runtime.build_worker"), str(uid_base), str(folder), *words],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd="/",
        env={**passed_on, **environment, "TMPDIR": "/tmp"},
        start_new_session=True,
    )
    with process:
        try:
            let_begin(process, group)
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()  # then it kills the program, and sees it end
    try:
        process.wait(LEAVING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel kills the program with it


@contextmanager
def _memory_explained(group: Group | None, tenant: str) -> Iterator[None]:
    try:
        yield
    except InvalidImage as error:
        if group is not None and group.stats().oom_kills:
            raise LimitRefused(
                f"cannot build within the memory of tenant `{tenant}`: a process of the build was killed",
                hint="stop some of its containers, or raise its limit",
            ) from error
        raise

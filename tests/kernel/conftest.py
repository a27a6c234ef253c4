# SPDX-License-Identifier: Apache-2.0
"""One real spawner per module, emptied after each test; what a dump is written to; a program to be tracked."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import carried
import spawned
from insula.migrate.memory import MemoryStore
from insula.monitor.call_hooks import CallPrograms
from insula.runtime.dump import memory_folder
from tracked import Puppet
from watched import Bench, made_bench


@pytest.fixture(scope="module")
def module_spawner() -> Iterator[spawned.Spawned]:
    # Not pytest's own folder: as with /run/insula, every part of the run folder's path may be entered by everybody.
    folder = Path(tempfile.mkdtemp(prefix="insula-test-"))
    folder.chmod(0o755)
    try:
        with spawned.spawner(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def host(module_spawner: spawned.Spawned) -> Iterator[spawned.Spawned]:
    """A spawner without containers."""
    with module_spawner.connected():
        yield module_spawner


@pytest.fixture
def images() -> Iterator[int]:
    """A folder for CRIU's images, in memory."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """What a target has of a container's memory."""
    with MemoryStore(limit_bytes=carried.LIMIT_BYTES) as made:
        yield made


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    made = Puppet()
    try:
        made.do("pass")
        yield made
    finally:
        made.end()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A collector; by parameter another way to load programs at calls."""
    with made_bench(getattr(request, "param", CallPrograms)) as made:
        yield made

# SPDX-License-Identifier: Apache-2.0
"""A layer from Debian's packages: some 10 seconds, and the package index of this machine's mirror."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from insula.image.debian import DEADLINE_S, Patience, build_debian
from insula.image.layers import Layers
from insula.model.errors import Cancelled, InvalidSpec
from insula.runtime.building import separated

UID_BASE = 1 << 29
"""Nobody's but tenants'."""


@pytest.fixture
def layers() -> Iterator[Layers]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="insula-test-"))
    yield Layers(folder / "layers")
    shutil.rmtree(folder)


def patience(is_cancelled: Callable[[], bool] = lambda: False) -> Patience:
    return Patience(time.monotonic() + DEADLINE_S, is_cancelled)


@contextmanager
def start(
    words: Sequence[str], *, environment: Mapping[str, str], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="insula-test-"))
    folder.chmod(0o1777)
    try:
        with separated(
            words, uid_base=UID_BASE, folder=folder, group=None, environment=environment, log=log
        ) as process:
            yield process
    finally:
        shutil.rmtree(folder)


def test_a_small_image_is_built(layers: Layers) -> None:
    record = build_debian("bookworm", ["redis-server"], layers=layers, start=start, patience=patience())
    folder = layers.folder(record.digest)
    assert (folder / "usr/bin/redis-server").stat().st_uid == 0
    assert {each.stat().st_uid for each in folder.rglob("*") if not each.is_symlink()} <= set(range(65536))
    assert list((folder / "var/lib/apt/lists").glob("*Packages*")) == []


def test_a_package_that_debian_has_not_is_named(layers: Layers) -> None:
    with pytest.raises(InvalidSpec, match="cannot install `no-such-package`"):
        build_debian("bookworm", ["no-such-package"], layers=layers, start=start, patience=patience())
    assert layers.list() == []


def test_a_build_can_be_cancelled(layers: Layers) -> None:
    with pytest.raises(Cancelled):
        build_debian("bookworm", [], layers=layers, start=start, patience=patience(lambda: True))
    assert layers.list() == []

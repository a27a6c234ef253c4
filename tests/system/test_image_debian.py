# SPDX-License-Identifier: Apache-2.0
"""A layer from Debian's packages: some 10 seconds, and the package index of this machine's mirror."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.image.debian import build_debian
from insula.image.layers import Layers
from insula.model.errors import Cancelled, InvalidSpec


@pytest.fixture
def layers() -> Iterator[Layers]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="insula-test-"))
    yield Layers(folder / "layers")
    shutil.rmtree(folder)


def test_a_small_image_is_built(layers: Layers) -> None:
    record = build_debian("bookworm", ["redis-server"], layers=layers)
    folder = layers.folder(record.digest)
    assert (folder / "usr/bin/redis-server").exists()
    assert list((folder / "var/lib/apt/lists").glob("*Packages*")) == []


def test_a_package_that_debian_has_not_is_named(layers: Layers) -> None:
    with pytest.raises(InvalidSpec, match="cannot install `no-such-package`"):
        build_debian("bookworm", ["no-such-package"], layers=layers)
    assert layers.list() == []


def test_a_build_can_be_cancelled(layers: Layers) -> None:
    with pytest.raises(Cancelled):
        build_debian("bookworm", [], layers=layers, is_cancelled=lambda: True)
    assert layers.list() == []

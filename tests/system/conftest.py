# SPDX-License-Identifier: Apache-2.0
"""For tests of a whole host, or of two that are paired: made once per module, emptied after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from two_hosts import Pair, emptied_after, start_pair


@pytest.fixture(scope="session")
def program() -> Iterator[Path]:
    """The CLI where every user may run it."""
    with hosted.installed_program() as made:
        yield made


@pytest.fixture(scope="session")
def image() -> bytes:
    """A tar with a static busybox."""
    return hosted.busybox_tar()


@pytest.fixture(scope="module")
def module_host(request: pytest.FixtureRequest, program: Path, image: bytes) -> Iterator[hosted.Host]:
    """A host for all tests of a module; one of another kind if the module names it, as HOST_KIND."""
    kind: type[hosted.Host] = getattr(request.module, "HOST_KIND", hosted.Host)
    with hosted.host(program, image, kind=kind) as made:
        yield made


@pytest.fixture
def host(module_host: hosted.Host) -> Iterator[hosted.Host]:
    """A host without containers."""
    yield from hosted.emptied_after(module_host)


@pytest.fixture
def root(host: hosted.Host) -> hosted.Person:
    return host.root


@pytest.fixture
def alice(host: hosted.Host) -> hosted.Person:
    return host.alice


@pytest.fixture
def bob(host: hosted.Host) -> hosted.Person:
    return host.bob


@pytest.fixture(scope="module")
def module_pair() -> Iterator[Pair]:
    yield from start_pair()


@pytest.fixture
def pair(module_pair: Pair) -> Iterator[Pair]:
    """Two hosts, paired, for a test that breaks none; its container `c` is removed."""
    yield from emptied_after(module_pair, "c")

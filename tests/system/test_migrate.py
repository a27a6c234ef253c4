# SPDX-License-Identifier: Apache-2.0
"""A container moves between two hosts: what goes with it, and what refuses it before anything stops."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from two_hosts import Counter, Pair, start_pair


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from start_pair()


def test_three_times_there_and_back_under_a_counting_client(pair: Pair) -> None:
    address = pair.run("walker")
    counter = Counter(pair.world, address)
    counter.wait_for_more()
    for _ in range(3):
        for source, target in (("alpha", "beta"), ("beta", "alpha")):
            pair.migrate("walker", source, target)
            assert pair.find(source, "walker") is None
            assert pair.status(target, "walker") == "running"
            counter.wait_for_more()
    assert counter.finish() > 100
    pair.remove("walker")

# SPDX-License-Identifier: Apache-2.0
"""The protocol keeps its promises in every order of events; and the explorer would have noticed if it did not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from protocol_model import M, Mutation, Protocol, explore, initial_later

from insula.model import migration


@pytest.mark.parametrize("max_faults", [0, 1, 2, 3, 4])
def test_never_two_never_none_never_undone(max_faults: int) -> None:
    count, found = explore(Protocol(max_faults=max_faults))
    assert found is None, "\n".join((found[0], *found[1]))
    assert count > 8 * (max_faults + 1)
    print(f"{count} states with {max_faults} faults")


@pytest.mark.parametrize("max_faults", [0, 1, 2, 3, 4])
def test_nor_while_the_memory_is_pulled(max_faults: int) -> None:
    count, found = explore(Protocol(max_faults=max_faults), start=initial_later)
    assert found is None, "\n".join((found[0], *found[1]))
    print(f"{count} states of post-copy with {max_faults} faults")


def test_a_source_that_ends_before_all_is_pulled_is_found() -> None:
    _, found = explore(Protocol(mutation=Mutation.ENDED_EARLY, max_faults=0), start=initial_later)
    assert found is not None
    assert found[0] == "the memory was ended before the target had it"


@pytest.mark.parametrize(
    "mutation", [each for each in Mutation if each not in (Mutation.NONE, Mutation.ENDED_EARLY)]
)
def test_a_planted_mistake_is_found(mutation: Mutation) -> None:
    _, found = explore(Protocol(mutation=mutation, max_faults=3))
    assert found is not None, mutation.value
    print(mutation.value, "→", found[0], *found[1], sep="\n    ")


def test_the_messages_are_those_of_the_protocol() -> None:
    assert all(hasattr(migration, each.value) for each in M)

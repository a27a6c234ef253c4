# SPDX-License-Identifier: Apache-2.0
"""The copy of a connection's descriptor is closed once, whoever comes first."""

import os

import pytest

from insula.api.handover import Copy


@pytest.fixture
def before() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_given_copy_is_closed_afterwards(before: int) -> None:
    seen: list[int] = []
    copy = Copy(0)
    copy.give(seen.append)
    copy.drop()
    assert len(seen) == 1 and seen[0] != 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_copy_whose_verb_fails_is_closed(before: int) -> None:
    with pytest.raises(ZeroDivisionError):
        Copy(0).give(lambda _descriptor: 1 // 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_copy_whose_verb_never_began_is_closed_and_not_given(before: int) -> None:
    seen: list[int] = []
    copy = Copy(0)
    copy.drop()
    copy.give(seen.append)
    assert not seen
    assert len(os.listdir("/proc/self/fd")) == before

# SPDX-License-Identifier: Apache-2.0
"""A lock lives as long as somebody holds it or waits for it."""

import threading

import pytest

from insula.runtime.locks import Locks


def test_a_lock_goes_with_its_last_user() -> None:
    locks = Locks()
    with locks.hold("a"), locks.hold("a"), locks.hold("b"):
        assert len(locks) == 2
    assert len(locks) == 0
    with pytest.raises(KeyError), locks.hold("never existed"):
        raise KeyError
    assert len(locks) == 0


def test_who_waits_for_a_removed_container_still_excludes_others() -> None:
    locks = Locks()
    inside: list[str] = []
    most: list[int] = []
    first = threading.Event()

    def work(name: str) -> None:
        with locks.hold("a"):
            inside.append(name)
            most.append(len(inside))
            first.wait(0.01)
            inside.remove(name)

    workers = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert max(most) == 1 and len(most) == 8 and len(locks) == 0


def test_who_waits_only_so_long_is_told_and_leaves_nothing() -> None:
    locks = Locks()
    has_it, over = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.hold("a"):
            has_it.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    has_it.wait()
    with locks.hold_within("a", seconds=0.01) as is_held:
        assert not is_held
    over.set()
    holder.join()
    with locks.hold_within("a", seconds=0.01) as is_held:
        assert is_held
    assert len(locks) == 0

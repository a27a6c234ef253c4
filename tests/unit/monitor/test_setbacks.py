# SPDX-License-Identifier: Apache-2.0
"""What fails again and again is said once, and once more when it works."""

import errno

import pytest

from insula.monitor.setbacks import Setbacks


@pytest.fixture
def setbacks() -> Setbacks:
    return Setbacks("test")


def fail(setbacks: Setbacks, step: str) -> None:
    with setbacks.going_on(step):
        raise OSError(errno.EMFILE, "bpf")


def test_each_step_is_logged_once_until_it_works_again(
    setbacks: Setbacks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(3):
        fail(setbacks, "one")
        fail(setbacks, "other")
    assert caplog.messages == ["a step of watching fails"] * 2
    for _ in range(2):
        with setbacks.going_on("one"):
            pass
    assert caplog.messages[2:] == ["a step of watching works again"]
    fail(setbacks, "one")
    assert caplog.messages[3:] == ["a step of watching fails"]


def test_what_is_no_refusal_of_the_kernel_is_not_hidden(setbacks: Setbacks) -> None:
    with pytest.raises(KeyError), setbacks.going_on("one"):
        raise KeyError

# SPDX-License-Identifier: Apache-2.0
"""A thread that may not begin is an error of the kernel's."""

import errno
import threading

import pytest

from insula.kernel.threads import begin


def test_one_that_begins_runs() -> None:
    has_run = threading.Event()
    thread = threading.Thread(target=has_run.set)
    begin(thread)
    thread.join()
    assert has_run.is_set()


def test_one_too_many_is_told_as_the_kernel_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="clone: can't start new thread") as refused:
        begin(threading.Thread())
    assert refused.value.errno == errno.EAGAIN

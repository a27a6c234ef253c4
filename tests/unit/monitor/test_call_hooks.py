# SPDX-License-Identifier: Apache-2.0
"""Programs at calls, where they cannot be had: `tests/kernel/test_collect_calls.py` has the others."""

import errno
import time

import pytest

from insula.monitor.call_hooks import KINDS, CallHooks, CallPrograms


def test_why_every_call_of_the_host_pays_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It may be for a moment only that there are no descriptors, but until insulad ends it stays so."""

    def load() -> CallPrograms:
        raise OSError(errno.EMFILE, "bpf: Too many open files")

    caplog.set_level("INFO")
    hooks = CallHooks(load)
    try:
        for _ in range(2):
            hooks.want(KINDS)
            assert not hooks.wait_settled(deadline=time.monotonic() + 20)
    finally:
        hooks.close()
    (record,) = caplog.records
    assert record.message == "events of calls are told at the end of all calls of the host"
    assert vars(record)["fields"] == {"reason": "bpf: Too many open files"}

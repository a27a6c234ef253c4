# SPDX-License-Identifier: Apache-2.0
"""Objects of libbpf: what it would print on our stderr is in the errors."""

import pytest

from insula.kernel.bpf_object import knows_tracepoint


def test_a_tracepoint_that_this_kernel_lacks_is_told_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert knows_tracepoint("sched_process_exec")
    assert not knows_tracepoint("insula_has_none_such")
    assert capfd.readouterr().err == ""

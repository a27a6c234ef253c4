# SPDX-License-Identifier: Apache-2.0
"""Who may call what it was seen to call may call other forms of it, and nothing with more power."""

import pytest

from insula.kernel import syscalls
from insula.kernel.covered_calls import allowed_by
from insula.kernel.seccomp_policy import ALWAYS


@pytest.mark.parametrize(
    ("used", "covered"),
    [
        ("pwritev", {"pwrite64"}),
        ("openat2", {"openat", "open", "creat"}),
        ("clone", {"fork", "vfork"}),
        ("preadv2", {"preadv", "pread64", "readv", "read"}),
        ("mount", set()),
    ],
)
def test_it_covers(used: str, covered: set[str]) -> None:
    assert allowed_by([used]) == {used} | covered


@pytest.mark.parametrize(
    ("used", "stronger"),
    [
        ("write", "pwrite64"),
        ("sendto", "sendmsg"),
        ("fork", "clone"),
        ("open", "openat"),
        ("unlink", "unlinkat"),
    ],
)
def test_what_has_more_power_is_not_covered(used: str, stronger: str) -> None:
    assert stronger not in allowed_by([used])


def test_what_was_refused_stays_so_unless_it_was_used_too() -> None:
    assert allowed_by(["pwritev"], refused=["pwrite64"]) == {"pwritev"}
    assert allowed_by(["clone", "vfork"], refused=["clone", "fork"]) == {"clone", "vfork"}


def test_each_is_a_call_that_needs_nothing_special() -> None:
    everything = allowed_by(syscalls.names())
    assert everything == syscalls.names()
    covered = {other for call in syscalls.names() for other in allowed_by([call]) - {call}}
    assert covered - ALWAYS == set()

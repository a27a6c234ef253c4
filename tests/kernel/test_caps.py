# SPDX-License-Identifier: Apache-2.0
"""The capability sets that a process keeps, on the real kernel."""

import os

import forked
from insula.kernel import caps, libc

NOTHING = "0" * 16
DEFAULT = f"{caps.to_mask(caps.DEFAULT):016x}"


def _status() -> str:
    with open("/proc/self/status", encoding="utf-8") as file:
        return " ".join(line.split()[1] for line in file if line.startswith("Cap"))  # Inh Prm Eff Bnd Amb


def test_root_keeps_exactly_the_set() -> None:
    def child() -> str:
        libc.unshare(0x10000000)
        caps.set_exact(caps.DEFAULT)
        return _status()

    assert forked.run(child) == f"{NOTHING} {DEFAULT} {DEFAULT} {DEFAULT} {NOTHING}"


def test_the_empty_set_leaves_nothing() -> None:
    def child() -> str:
        libc.unshare(0x10000000)
        caps.set_exact(frozenset())
        return _status()

    assert forked.run(child) == " ".join([NOTHING] * 5)


def test_another_user_holds_nothing_below_the_ceiling_even_without_setuid_in_it() -> None:
    def child() -> str:
        caps.become(frozenset({"CHOWN"}), uid=1234, gid=2345, groups=[3456])
        return f"{os.getresuid()[2]} {os.getresgid()[2]} {os.getgroups()} {_status()}"

    chown = f"{1:016x}"
    assert forked.run(child) == f"1234 2345 [3456] {NOTHING} {NOTHING} {NOTHING} {chown} {NOTHING}"


def test_current_tells_what_the_kernel_tells() -> None:
    sets = caps.current()
    assert f"{caps.to_mask(sets.effective):016x}" == _status().split()[2]

# SPDX-License-Identifier: Apache-2.0
"""Processes as `top` shows them, tried on this test's own."""

import os
import subprocess

from msgspec.structs import replace

from insula.runtime.top import OVERFLOW_ID, processes
from records import container_record

RECORD = container_record(uid_base=os.geteuid(), pid=os.getpid())


def test_a_process_is_described_with_ids_of_the_container() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        found = {each.host_pid: each for each in processes(RECORD, [os.getpid(), child.pid], told=tuple)}
        assert found[child.pid].parent_pid == found[os.getpid()].pid
        assert found[child.pid].uid == 0
        assert found[os.getpid()].resident_bytes > 1 << 20
        assert found[os.getpid()].cpu_time_s > 0
    finally:
        child.kill()
        child.wait()


def test_foreign_ids_and_gone_processes() -> None:
    shifted = replace(RECORD, uid_base=os.geteuid() + 1)
    child = subprocess.Popen(["true"])
    child.wait()
    assert [each.uid for each in processes(shifted, [os.getpid(), child.pid], told=tuple)] == [OVERFLOW_ID]

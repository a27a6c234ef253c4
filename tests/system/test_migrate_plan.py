# SPDX-License-Identifier: Apache-2.0
"""What a plan counts, and what is refused before anything stops."""

import pytest

from insula.model.errors import CheckpointFailed
from two_hosts import SERVER, Counter, Pair

MEGABYTE = 1 << 20


SHARING = """
import mmap, os
area = mmap.mmap(-1, 24 << 20)
area[:] = os.urandom(len(area))
with open("/dev/shm/kept", "wb") as file: file.write(os.urandom(3 << 20))
"""

RESERVING = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap(None, ctypes.c_size_t(8 << 40), 3, 0x4022, -1, ctypes.c_long(0))
"""

PACKETS = """
import os
ends = os.pipe2(os.O_DIRECT)
"""


def test_a_plan_counts_shared_memory_and_what_lies_in_a_tmpfs(pair: Pair) -> None:
    counter = Counter(pair.world, pair.run("c", program=SHARING + SERVER))
    counter.wait_for_more()
    seen = pair.act("alpha", "c", "migrate", target="beta", plan=True)
    counter.finish()
    assert 24 * MEGABYTE <= seen["shared_bytes"] < 26 * MEGABYTE
    assert 3 * MEGABYTE <= seen["tmpfs_bytes"] < 4 * MEGABYTE
    assert seen["pause_ms"] > 3 * 3 * MEGABYTE / seen["link_bytes_per_s"] * 1000


@pytest.mark.parametrize(
    ("program", "words"),
    [(RESERVING, r"has reserved 81\d\d GiB of address space"), (PACKETS, "a pipe in packet mode")],
    ids=["reserved", "packets"],
)
def test_what_criu_cannot_carry_is_refused_before_anything_stops(
    pair: Pair, program: str, words: str
) -> None:
    counter = Counter(pair.world, pair.run("c", program=program + SERVER))
    counter.wait_for_more()
    for plan in (True, False):
        with pytest.raises(CheckpointFailed, match=words) as caught:
            pair.act("alpha", "c", "migrate", target="beta", plan=plan, max_pause_ms=60_000)
        assert caught.value.hint
    assert pair.status("alpha", "c") == "running"
    assert pair.find("beta", "c") is None
    counter.wait_for_more()
    counter.finish()

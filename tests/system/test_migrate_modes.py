# SPDX-License-Identifier: Apache-2.0
"""Plans, pauses and modes of a move: what is said beforehand is kept, or nothing stops."""

from pathlib import Path

import pytest

from insula.model.errors import PauseTooLong
from searched import found_below
from two_hosts import SERVER, Counter, Pair, wait_until

#: Serves as two_hosts.SERVER does, and in a thread writes all of 64 MiB again and again.
WRITER = """
import threading
memory = bytearray(64 << 20)
def write():
    while True:
        for at in range(0, len(memory), 4096):
            memory[at] = (memory[at] + 1) & 255
threading.Thread(target=write, daemon=True).start()
"""


def move(pair: Pair, **wish: object) -> dict[str, object]:
    return pair.act("alpha", "c", "migrate", target="beta", **wish)


def quota(pair: Pair) -> list[str]:
    """Return the CPU quotas of all containers of alpha."""
    parent = pair.host("alpha").cgroup
    files = found_below("/sys/fs/cgroup", f"cpu*/**/{parent}/*/*/cpu.cfs_quota_us")
    files += found_below("/sys/fs/cgroup", f"**/{parent}/*/*/cpu.max")
    return [Path(each).read_text().split()[0].replace("max", "-1") for each in files]


def test_a_plan_moves_nothing_and_a_container_goes_on(pair: Pair) -> None:
    counter = Counter(pair.world, pair.run("c"))
    counter.wait_for_more()
    seen = move(pair, plan=True)
    assert seen["verdict"] == "moves"
    assert seen["target"] == "beta"
    assert seen["tracker"] in ("userfaultfd", "soft-dirty", "none")
    assert int(str(seen["memory_bytes"])) > 1 << 20
    assert float(str(seen["link_bytes_per_s"])) > 0
    assert pair.status("alpha", "c") == "running"
    assert pair.find("beta", "c") is None
    counter.wait_for_more()
    counter.finish()


@pytest.mark.parametrize("mode", ["auto", "pre-copy", "stop-copy"])
def test_each_mode_carries_it_whole(pair: Pair, mode: str) -> None:
    counter = Counter(pair.world, pair.run("c"))
    counter.wait_for_more()
    result = move(pair, mode=mode, max_pause_ms=60_000)
    assert (int(str(result["rounds"])) == 0) == (mode == "stop-copy" or result["tracker"] == "none")
    counter.wait_for_more()
    counter.finish()


@pytest.mark.parametrize("mode", ["pre-copy", "stop-copy"])
def test_a_pause_that_cannot_be_is_refused_before_anything_stops(pair: Pair, mode: str) -> None:
    counter = Counter(pair.world, pair.run("c"))
    counter.wait_for_more()
    with pytest.raises(PauseTooLong, match=r"cannot move `c` within 1 ms: .* the link carries"):
        move(pair, mode=mode, max_pause_ms=1)
    assert pair.status("alpha", "c") == "running"
    assert pair.find("beta", "c") is None
    counter.wait_for_more()
    counter.finish()


def test_the_container_s_own_pause_counts(pair: Pair) -> None:
    pair.run("c", max_pause_ms=1)
    with pytest.raises(PauseTooLong):
        move(pair)
    assert move(pair, max_pause_ms=60_000)["target"] == "beta"


def test_one_that_writes_faster_than_the_link_is_slowed_down_and_let_go_again(pair: Pair) -> None:
    pair.run("c", program=WRITER + SERVER)
    before = quota(pair)
    try:
        move(pair, mode="pre-copy", max_pause_ms=150)
        assert pair.status("beta", "c") == "running"
    except PauseTooLong:
        assert pair.status("alpha", "c") == "running"
        assert wait_until(lambda: quota(pair) == before), (quota(pair), before)


def test_its_log_goes_along(pair: Pair) -> None:
    pair.run(
        "c", program="import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.05)"
    )

    def lines(host: str) -> list[str]:
        return [str(each["text"]) for each in pair.client(host).follow("/v1/containers/c/logs")]

    assert wait_until(lambda: len(lines("alpha")) > 3)
    there = lines("alpha")
    move(pair)
    assert wait_until(lambda: len(lines("beta")) > len(there) + 3)
    now = lines("beta")
    assert now == [f"line {number}" for number in range(len(now))]

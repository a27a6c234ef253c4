# SPDX-License-Identifier: Apache-2.0
"""A move over a slow link: what travels is compressed, and the result says both sizes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from demo import hosts

from two_hosts import SERVER, Counter, Pair

WORDS = """
kept = b"".join(b"%08d a row of some table, as programs keep them" % number for number in range(400_000))
"""


@contextmanager
def slow(pair: Pair, rate: str) -> Iterator[None]:
    """Limit what reaches the second host from the first."""
    port = ("dev", "ctl-2", "root")
    tc(pair, "add", *port, "tbf", "rate", rate, "burst", "64k", "latency", "100ms")
    try:
        yield
    finally:
        tc(pair, "del", *port)


def tc(pair: Pair, *words: str) -> None:
    subprocess.run(hosts.inside(pair.world.outside, "tc", "qdisc", *words), check=True, timeout=20)


def test_a_slow_link_carries_less_than_there_is(pair: Pair) -> None:
    counter = Counter(pair.world, pair.run("c", program=WORDS + SERVER))
    counter.wait_for_more()
    with slow(pair, "80mbit"):
        plan = pair.act("alpha", "c", "migrate", target="beta", plan=True)
        assert plan["packed_bytes_per_s"] > plan["link_bytes_per_s"] * 1.5
        result = pair.act("alpha", "c", "migrate", target="beta", max_pause_ms=60_000)
    counter.wait_for_more()
    counter.finish()
    print(result)
    assert result["raw_bytes"] > 20_000_000
    assert result["moved_bytes"] < result["raw_bytes"] * 0.7

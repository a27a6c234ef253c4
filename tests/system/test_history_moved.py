# SPDX-License-Identifier: Apache-2.0
"""The hour that is kept does not travel: each host tells what it has looked at itself, and for how long."""

import time

from two_hosts import Pair, wait_until


def seconds_at(pair: Pair, host: str) -> float:
    return sum(row["seconds"] for row in pair.client(host).get("/v1/history") if row["name"] == "c")


def test_a_container_that_has_moved_is_told_of_from_its_arrival_on(pair: Pair) -> None:
    pair.run("c")
    assert wait_until(lambda: seconds_at(pair, "alpha") > 8)
    begun = time.monotonic()
    pair.migrate("c", "alpha", "beta")
    assert wait_until(lambda: seconds_at(pair, "beta") > 0)
    assert seconds_at(pair, "beta") <= time.monotonic() - begun
    assert wait_until(lambda: seconds_at(pair, "alpha") == 0)
    spans = pair.client("beta").get("/v1/containers/c/history")
    assert 0 < sum(span["seconds"] for span in spans) <= time.monotonic() - begun

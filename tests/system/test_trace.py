# SPDX-License-Identifier: Apache-2.0
"""Traces and counters through the API of two hosts, across a move."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from insula.client.http import Client, quote
from insula.model.errors import BadRequest, ContainerNotFound, InsulaError
from two_hosts import COUNTING, SERVER, Pair, wait_until
from waiting import DEADLINE_S


class Watcher(threading.Thread):
    """Reads a trace in the background."""

    def __init__(self, client: Client, container: str, **query: str) -> None:
        super().__init__(daemon=True)
        self.lines: list[dict[str, Any]] = []
        self._answer = client.open("GET", f"/v1/containers/{quote(container)}/trace", query=query)

    def run(self) -> None:
        try:
            for line in self._answer.lines():
                if line.strip():
                    self.lines.append(json.loads(line))
        except (OSError, InsulaError):  # hung up below
            pass

    @property
    def events(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == "event"]

    def wait_for(self, count: int) -> None:
        assert wait_until(lambda: len(self.events) >= count), self.lines[-5:]


@contextmanager
def watching(client: Client, container: str, **query: str) -> Iterator[Watcher]:
    watcher = Watcher(client, container, **query)
    watcher.start()
    try:
        yield watcher
    finally:
        watcher._answer.detach().shutdown(2)
        watcher._answer.close()
        watcher.join(DEADLINE_S)
        assert not watcher.is_alive()


def numbers(watcher: Watcher) -> list[int]:
    return [int(event["path"].rsplit("/", 1)[1]) for event in watcher.events]


def test_a_trace_goes_on_across_moves_without_a_hole(pair: Pair) -> None:
    pair.run("c", program=COUNTING + SERVER)
    with watching(pair.client("alpha"), "c", kinds="file", paths="/insula-none/*") as watcher:
        watcher.wait_for(100)
        pair.migrate("c", "alpha", "beta")
        watcher.wait_for(len(watcher.events) + 200)
        pair.migrate("c", "beta", "alpha")
        watcher.wait_for(len(watcher.events) + 200)
        seen = numbers(watcher)
    assert not [line for line in watcher.lines if line["type"] not in ("event", "began")]
    assert seen == list(range(seen[0], seen[0] + len(seen)))


def test_what_a_flood_loses_on_the_way_is_counted(pair: Pair) -> None:
    """Too fast for any reader, while it moves: each number is seen, or counted as lost."""
    flood = COUNTING.replace(
        "select.select([], [], [], 0.001)", "number % 200 or select.select([], [], [], 0.001)"
    )
    pair.run("c", program=flood + SERVER)
    with watching(pair.client("alpha"), "c", kinds="file", paths="/insula-none/*") as watcher:
        watcher.wait_for(1000)
        pair.migrate("c", "alpha", "beta")
        watcher.wait_for(len(watcher.events) + 1000)
        lines = list(watcher.lines)
    seen = [int(line["path"].rsplit("/", 1)[1]) for line in lines if line["type"] == "event"]
    lost = sum(line["events"] for line in lines if line["type"] == "lost")
    assert seen == sorted(set(seen))
    assert seen[-1] - seen[0] + 1 - len(seen) <= lost
    assert "ended" not in {line["type"] for line in lines}


def test_a_trace_ends_with_the_container_that_moved_and_ended(pair: Pair) -> None:
    pair.run("c", program=COUNTING + SERVER)
    with watching(pair.client("alpha"), "c", kinds="exit") as watcher:
        pair.migrate("c", "alpha", "beta")
        pair.client("beta").call("POST", "/v1/containers/c/kill", body={"signal": "KILL"})
        assert wait_until(lambda: not watcher.is_alive())
    assert watcher.lines[-1] == {"type": "ended", "reason": "ended with exit code 137"}
    assert "killed by SIGKILL" in {event["detail"] for event in watcher.events}


def test_a_trace_of_what_does_not_run_is_refused(pair: Pair) -> None:

    with pytest.raises(ContainerNotFound):
        Watcher(pair.client("alpha"), "nobody")
    pair.run("c")
    with pytest.raises(BadRequest):
        Watcher(pair.client("alpha"), "c", kinds="bogus")


def test_calls_are_counted_while_somebody_looks(pair: Pair) -> None:
    pair.run("c", program=COUNTING + SERVER)
    (counts,) = pair.client("alpha").get("/v1/containers/c/calls")
    opened = next(call for call in counts["calls"] if call["call"] == "openat")
    assert opened["failures"] > 10
    assert (
        abs(opened["errors"]["ENOENT"] - opened["failures"]) < 100
    )  # read one after the other, while it goes on
    assert counts["name"] == "c"

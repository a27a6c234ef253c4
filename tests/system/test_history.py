# SPDX-License-Identifier: Apache-2.0
"""The hour that is kept: what a container used is there while it runs, after insulad was killed, and for its tenant only."""

import contextlib
import sqlite3
from typing import Any

import hosted

BUSY = ("sh", "-c", "while :; do :; done")


def history(person: hosted.Person) -> dict[str, Any]:
    return {row["name"]: row for row in person.json("stats", "--since", "10m", "--format", "json")}


def wait_for_history(person: hosted.Person, name: str, *, seconds: float = 0.0) -> dict[str, Any]:
    """Wait until so much of a container is kept."""
    hosted.wait_until(
        lambda: history(person).get(name, {"seconds": 0})["seconds"] > seconds, what=f"a history of {name}"
    )
    found: dict[str, Any] = history(person)[name]
    return found


def test_what_was_used_is_kept_for_those_who_may_see_it(host: hosted.Host) -> None:
    host.alice("run", "-d", "--name", "busy", "--cpus", "0.5", "box", *BUSY)
    found = wait_for_history(host.alice, "busy")
    assert 5 < found["cpu_percent"] <= found["cpu_peak_percent"] < 80
    assert found["memory_bytes"] > 0 and found["pids_peak"] >= 1
    assert host.bob.json("stats", "--since", "10m", "--format", "json") == []
    status, _ = host.bob.ask("GET", f"/v1/containers/{found['id']}/history")
    assert status == 404
    status, spans = host.alice.ask("GET", "/v1/containers/busy/history?seconds=600&step=300")
    assert status == 200 and 1 <= len(spans) <= 3
    status, refused = host.alice.ask("GET", "/v1/history?seconds=99999")
    assert (status, refused["error"]["code"]) == (400, "bad_request")


def test_it_is_there_again_when_insulad_was_killed_and_goes_with_the_container(host: hosted.Host) -> None:
    host.alice("run", "-d", "--name", "kept", "box", "sleep", "600")
    before = wait_for_history(host.alice, "kept")
    host.kill()
    host.start()
    assert history(host.alice)["kept"]["seconds"] >= before["seconds"]
    more = wait_for_history(host.alice, "kept", seconds=before["seconds"])
    host.alice("rm", "-f", "kept")
    assert "kept" not in history(host.alice)

    def kept() -> list[str]:
        with contextlib.closing(sqlite3.connect(host.folder / "state/history.sqlite")) as database:
            return [row[0] for row in database.execute("SELECT id FROM containers")]

    hosted.wait_until(lambda: more["id"] not in kept(), what="the rows are gone")


def test_system_calls_are_kept_while_somebody_counts_them_and_for_nobody_else(host: hosted.Host) -> None:
    container = host.alice("run", "-d", "--name", "busy", "box", "sh", "-c", "while :; do cat /none; done")
    with host.alice.asking("GET", f"/v1/calls?stream=1&only={container}"):
        hosted.wait_until(
            lambda: history(host.alice).get("busy", {"counted_seconds": 0})["counted_seconds"] > 0,
            what="counted calls in the history",
        )
        status, counts = host.bob.ask("GET", f"/v1/calls?only={container}")
        assert (status, counts) == (200, [])
    found = history(host.alice)["busy"]
    assert found["calls"] >= sum(found["top_calls"].values()) > 0
    assert found["top_errors"]["openat ENOENT"] > 0
    assert 0 < found["failures"] < found["calls"]

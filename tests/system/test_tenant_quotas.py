# SPDX-License-Identifier: Apache-2.0
"""Limits of tenants on a real host: refused with the figure, enforced for the sum, right after every restart."""

import contextlib
import io
import socket
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hosted
from hosted import Host, Person, wait_until
from insula.daemon.doorstep import MAX_CONNECTIONS
from searched import found_below


@pytest.fixture(autouse=True)
def without_limits(host: Host) -> Iterator[None]:
    yield
    every = (
        "memory",
        "cpus",
        "weight",
        "pids",
        "containers",
        "networks",
        "ports",
        "streams",
        "requests",
        "images",
    )
    for tenant in (host.alice.tenant, host.bob.tenant, "--default"):
        host.root("tenant", "set", tenant, *(f"{name}=default" for name in every))


def use(person: Person, resource: str) -> Any:
    uses = person.json("tenant", "show", "--format", "json")
    return next(each for each in uses if each["resource"] == resource)


def test_containers_are_counted_after_a_kill_as_before(
    host: Host, root: Person, alice: Person, bob: Person
) -> None:
    root("tenant", "set", alice.tenant, "containers=2")
    alice("create", "--name", "one", "box", "true")
    alice("create", "--name", "two", "box", "true")
    said = alice.fails("create", "--name", "three", "box", "true", code=125)
    assert "2 used, 1 wished, the limit is 2" in said
    bob("create", "--name", "one", "box", "true")
    host.kill()
    host.start()
    assert "the limit is 2" in alice.fails("create", "--name", "three", "box", "true", code=125)
    alice("rm", "one")
    alice("create", "--name", "three", "box", "true")
    assert (use(alice, "containers")["used"], use(alice, "containers")["limit"]) == (2, 2)


def test_processes_of_all_containers_together(root: Person, alice: Person, bob: Person) -> None:
    root("tenant", "set", alice.tenant, "pids=12")
    alice("run", "-d", "--name", "first", "box", "sleep", "1000")
    done = alice.give("run", "--rm", "box", "sh", "-c", "for i in $(seq 20); do sleep 1000 & done; wait")
    assert done.code != 0 and "fork" in done.err
    bob("run", "--rm", "box", "sh", "-c", "for i in $(seq 20); do sleep 0.1 & done; wait")
    assert use(alice, "pids")["used"] >= 1


def test_memory_of_all_containers_together(root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "memory=64m")
    refused = alice.fails("create", "-m", "100m", "box", "true", code=125)
    assert "100MiB wished, the limit is 64.0MiB" in refused
    alice(
        "run",
        "-d",
        "--name",
        "half",
        "box",
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=40; sleep 1000",
    )
    wait_until(lambda: use(alice, "memory")["used"] > 40 << 20, what="it has written")
    done = alice.give("run", "--rm", "box", "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40")
    assert done.code != 0, done
    assert use(alice, "memory")["used"] <= 64 << 20


def test_a_limit_holds_for_what_runs_already(root: Person, alice: Person) -> None:
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40; sleep 1000"
    alice("run", "-d", "--name", "runs", "box", "sh", "-c", fill)
    wait_until(lambda: use(alice, "memory")["used"] > 40 << 20, what="it has written")
    root("tenant", "set", alice.tenant, "pids=50", "cpus=0.5", "weight=50")
    if len(Path("/proc/swaps").read_text().splitlines()) == 1:
        assert "more is in use" in root.fails("tenant", "set", alice.tenant, "memory=20m")
    uses = {each["resource"]: each.get("limit") for each in alice.json("tenant", "show", "--format", "json")}
    assert (uses["pids"], uses["cpus"], uses["weight"], uses["memory"]) == (50, 500, 50, None)


def test_nobody_may_have_all_processes_of_the_kernel(host: Host, root: Person, alice: Person) -> None:
    limit = use(alice, "pids")["limit"]
    assert limit * 3 <= int(Path("/proc/sys/kernel/pid_max").read_text())
    assert f"the limit is {limit}" in alice.fails("create", "--pids", str(limit + 1), "box", "true", code=125)
    alice("run", "-d", "--name", "a", "box", "sleep", "1000")
    [held] = map(Path, found_below("/sys/fs/cgroup", f"**/{host.cgroup}/tenant-{alice.tenant}/pids.max"))
    assert int(held.read_text()) == limit
    root("tenant", "set", "--default", "pids=none")
    assert (use(alice, "pids")["limit"], held.read_text()) == (None, "max\n")


def test_networks_and_ports(root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "networks=2", "ports=2")
    alice("network", "create", "more")
    assert "networks: 2 used, 1 wished, the limit is 2" in alice.fails("network", "create", "third")
    alice("run", "-d", "--name", "a", "-p", "80", "box", "sleep", "1000")
    alice("run", "-d", "--name", "b", "-p", "80", "box", "sleep", "1000")
    assert "published ports: 2 used" in alice.fails(
        "run", "-d", "--name", "c", "-p", "80", "box", "sleep", "1", code=125
    )
    alice("kill", "a")
    alice.wait_for("a", status="exited")
    alice("start", "c")
    assert use(alice, "ports")["used"] == 2


def test_who_starts_at_once_has_no_more_ports(root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "ports=1")
    names = ("a", "b", "c", "d")
    for name in names:
        alice("create", "--name", name, "-p", "80", "box", "sleep", "1000")
    with ThreadPoolExecutor(len(names)) as pool:
        done = list(pool.map(lambda name: alice.give("start", name), names))
    assert sorted(each.code == 0 for each in done) == [False, False, False, True], done
    assert all("published ports: 1 used" in each.err for each in done if each.code)
    assert use(alice, "ports")["used"] == 1


def test_a_default_is_everybodys_who_has_no_own(root: Person, alice: Person, bob: Person) -> None:
    root("tenant", "set", "--default", "containers=0")
    root("tenant", "set", bob.tenant, "containers=none")
    assert "the limit is 0" in alice.fails("create", "box", "true", code=125)
    bob("create", "box", "true")
    assert use(alice, "containers")["is_default"] and not use(bob, "containers").get("is_default", True)


def test_a_user_sees_only_its_own_tenant_and_changes_nothing(
    root: Person, alice: Person, bob: Person
) -> None:
    assert [each["name"] for each in alice.json("tenant", "ls", "--format", "json")] == [alice.tenant]
    there, nowhere = (alice.fails("tenant", "show", name) for name in (bob.tenant, "nobody-there"))
    assert there.replace(bob.tenant, "X") == nowhere.replace("nobody-there", "X")
    assert "needs the right" in alice.fails("tenant", "set", alice.tenant, "pids=none")
    assert {alice.tenant, bob.tenant} <= {
        each["name"] for each in root.json("tenant", "ls", "--format", "json")
    }


def test_a_tenant_comes_and_goes_and_its_uids_are_never_anothers(root: Person) -> None:
    root("tenant", "create", "guests", "containers=1", "memory=1g")
    first = next(each for each in root.json("tenant", "ls", "--format", "json") if each["name"] == "guests")
    root("tenant", "rm", "guests")
    assert "cannot find tenant" in root.fails("tenant", "show", "guests")
    root("tenant", "create", "others", "pids=9")
    root("tenant", "create", "guests", "pids=9")
    known = {each["name"]: each["uid_base"] for each in root.json("tenant", "ls", "--format", "json")}
    assert known["guests"] == first["uid_base"] != known["others"]
    root("tenant", "rm", "guests", "others")


def test_a_fast_user_is_slowed_then_refused_and_another_is_not(
    root: Person, alice: Person, bob: Person
) -> None:
    root("tenant", "set", alice.tenant, "requests=5")
    # So many that enough are refused also where it takes seconds to ask.
    connections = [alice.asking("GET", "/v1/containers") for _ in range(90)]
    answers = [hosted.answered(each)[0] for each in connections]
    for each in connections:
        each.close()
    assert answers.count(429) >= 10 and answers.count(200) >= 10
    assert bob.ask("GET", "/v1/containers")[0] == 200


def test_open_streams_are_counted(root: Person, alice: Person) -> None:
    alice("run", "-d", "--name", "talks", "box", "sleep", "1000")
    root("tenant", "set", alice.tenant, "streams=2")
    with (
        alice.asking("GET", "/v1/containers/talks/logs?follow"),
        alice.asking("GET", "/v1/containers/talks/wait"),
    ):
        wait_until(lambda: alice.ask("GET", "/v1/containers")[0] == 507, what="a third one is refused")
    wait_until(lambda: alice.ask("GET", "/v1/containers")[0] == 200, what="they have gone")


def test_what_is_used_is_counted_also_without_limits(alice: Person) -> None:
    alice("run", "-d", "--name", "busy", "box", "sh", "-c", "yes | head -c 100000; while :; do :; done")
    wait_until(lambda: use(alice, "cpus")["used"] > 100, what="its processor time is told")
    wait_until(lambda: use(alice, "log")["used"] >= 100_000, what="its log is told")
    assert use(alice, "requests")["used"] >= 1
    assert use(alice, "build-time")["used"] == 0


def test_streams_are_counted_after_a_kill_as_before(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "talks", "box", "sleep", "1000")
    with alice.begin("exec", "-i", "talks", "cat", stdin=subprocess.PIPE) as open_one:
        assert open_one.stdin is not None and open_one.stdout is not None
        open_one.stdin.write(b"hello\n")
        open_one.stdin.flush()
        assert open_one.stdout.readline() == b"hello\n"
        wait_until(lambda: use(alice, "streams")["used"] == 2, what="two: it, and the one that asks")
        host.kill()
        host.start()
        wait_until(lambda: use(alice, "streams")["used"] == 2, what="it is counted again")
        open_one.stdin.close()
        open_one.wait(timeout=hosted.DEADLINE_S)
    wait_until(lambda: use(alice, "streams")["used"] == 1, what="it has gone")


def test_an_image_bomb_is_refused_with_the_figures_and_leaves_nothing(
    host: Host, root: Person, alice: Person
) -> None:
    own = use(alice, "images")["used"]
    root("tenant", "set", alice.tenant, f"images={own + (1 << 20)}")
    zeros = io.BytesIO()
    with tarfile.open(fileobj=zeros, mode="w:gz") as tar:
        hosted.add_file(tar, "bomb", bytes(8 << 20))
    layers = host.folder / "state/layers"
    before = sorted(found_below(layers, "sha256/**/meta.json"))
    assert before
    said = alice.fails("image", "import", "-", "bomb", data=zeros.getvalue())
    assert "cannot use more images" in said and "the limit is" in said
    wait_until(lambda: not list((layers / "tmp").iterdir()), what="nothing of it stays")
    assert sorted(found_below(layers, "sha256/**/meta.json")) == before
    assert use(alice, "images")["used"] == own


def test_a_log_is_kept_to_its_limit(host: Host, root: Person, alice: Person) -> None:
    root("tenant", "set", alice.tenant, "log=64k")
    alice("run", "--name", "talks", "box", "sh", "-c", "yes | head -c 1000000")
    folder = host.folder / "state/containers" / alice.look("talks")["id"]
    assert sum(each.stat().st_size for each in folder.glob("log*")) <= 128 << 10
    root("tenant", "set", alice.tenant, "log=default")


def first_answer(connection: socket.socket) -> str:
    """Ask on an open connection, which may be refused and closed before it could; return the status."""
    with contextlib.suppress(OSError):
        connection.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: insula\r\n\r\n")
    return connection.recv(65536)[9:12].decode()


def test_connections_of_one_uid_are_bounded_and_anothers_come_in(
    alice: Person, bob: Person, root: Person
) -> None:
    statuses: Counter[str] = Counter()

    def is_bounded() -> bool:
        """As soon as what was open before has gone."""
        with contextlib.ExitStack() as opened:
            mine = [opened.enter_context(alice.connected()) for _ in range(200)]
            statuses.clear()
            statuses.update(first_answer(each) for each in mine)
            assert statuses["200"] <= MAX_CONNECTIONS
            assert bob.ask("GET", "/v1/containers")[0] == 200
            assert root.ask("GET", "/v1/containers")[0] == 200
        return statuses == {"200": MAX_CONNECTIONS, "429": 200 - MAX_CONNECTIONS}

    wait_until(is_bounded, what=lambda: f"as many as may be are let in: {statuses}")

    def is_let_in() -> bool:
        with alice.connected() as again:
            return first_answer(again) == "200"

    wait_until(is_let_in, what="the others have gone")


def test_a_refusal_by_cli_is_told_in_words(alice: Person) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(MAX_CONNECTIONS):
            opened.enter_context(alice.connected())
        assert "cannot take so many connections" in alice.fails("ps")

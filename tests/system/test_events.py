# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/events` and `insula events`: what happens to containers, and to whom it is told."""

import http.client

from hosted import Host
from told import listening
from waiting import DEADLINE_S


def test_a_life_is_told_in_order(host: Host) -> None:
    with listening(host.alice) as events:
        host.alice("run", "--name", "short", "box", "sh", "-c", "exit 0")
        host.alice("rename", "short", "brief")
        host.alice("rm", "brief")
        told = events.read(5)
    assert told == [
        ("short", "created", ""),
        ("short", "started", ""),
        ("short", "exited", "exit code 0"),
        ("brief", "renamed", "from short"),
        ("brief", "removed", ""),
    ]


def test_another_tenant_is_not_told(host: Host) -> None:
    with listening(host.bob) as bob, listening(host.root) as root:
        host.alice("create", "--name", "secret", "box", "true")
        host.bob("create", "--name", "mine", "box", "true")
        assert bob.read(1) == [("mine", "created", "")]
        host.root("create", "--name", "own", "box", "true")
        assert root.read(1) == [("own", "created", "")]


def test_the_command_prints_a_line_each(host: Host) -> None:
    with host.alice.begin("events", "-n", "1", "mine") as running:
        # It is let in some time after it was started: things happen until one is printed.
        for _ in range(200):
            host.alice("create", "--name", "mine", "box", "true")
            host.alice("rm", "mine")
            if running.poll() is not None:
                break
        out, _ = running.communicate(timeout=DEADLINE_S)
    assert out.decode().split()[2:4] in (["mine", "created"], ["mine", "removed"])


def test_figures_are_the_callers_own(host: Host) -> None:
    host.alice("run", "-d", "--name", "hers", "box", "sleep", "1000")
    host.bob("run", "-d", "--name", "his", "box", "sleep", "1000")
    with host.alice.asking("GET", "/metrics") as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        text = answer.read().decode()
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'insula_container_processes{id="' in text
    assert 'name="hers"' in text
    assert 'name="his"' not in text and host.bob.tenant not in text

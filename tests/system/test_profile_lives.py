# SPDX-License-Identifier: Apache-2.0
"""A recording goes on through restarts of the container and of insulad, and says what is missing."""

import signal

import pytest

from hosted import Host, wait_until

#: Makes the folders that it finds asked for: what each life does is told by the folder it writes in.
SERVER = "while :; do [ -e /run/go ] && mkdir -p $(cat /run/go); sleep 0.1; done"


KEPT = "r"
"""The profile: its container's name is none that a profile can have."""


@pytest.fixture
def server(host: Host) -> str:
    host.root("create", "--name", "R", "--network", "none", "box", "sh", "-c", SERVER)
    host.root.give("profile", "rm", KEPT)
    return "R"


def do(host: Host, folder: str) -> None:
    """Have the server make a folder, beneath one of its own."""
    host.root("exec", "R", "sh", "-c", f"mkdir -p /run; echo {folder}/x > /run/new; mv /run/new /run/go")
    wait_until(lambda: host.root.give("exec", "R", "ls", f"{folder}/x").code == 0, what=f"{folder} is made")


def test_every_life_is_recorded(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    host.root("start", server)
    do(host, "/one")
    host.root("restart", "-t", "1", server)
    do(host, "/two")
    assert {"/one", "/two"} <= host.root.json("profile", "show", "--format", "json", server)["written"].keys()
    host.root("stop", "-t", "1", server)
    host.root("start", server)
    do(host, "/three")
    host.root("profile", "stop", server)
    kept = host.root.json("profile", "show", "--format", "json", KEPT)
    assert {"/one", "/two", "/three"} <= kept["written"].keys()
    assert kept["is_from_birth"]
    assert kept["incomplete_because"] == ""
    assert "is not being recorded" in host.root.fails("profile", "stop", server)


@pytest.mark.parametrize(
    ("end", "missing", "is_there"),
    [
        (signal.SIGTERM, "insulad was restarted: what was done meanwhile is missing", True),
        (signal.SIGKILL, "insulad was killed: what it had seen since the last start is missing", False),
    ],
)
def test_a_recording_survives_insulad(
    host: Host, server: str, end: signal.Signals, missing: str, is_there: bool
) -> None:
    host.root("profile", "record", server)
    host.root("start", server)
    do(host, "/one")
    host.root("restart", "-t", "1", server)
    do(host, "/two")
    host.kill(end)
    host.start()
    do(host, "/three")
    assert missing in host.root("profile", "show", server)
    assert f"incomplete: {missing}" in host.root("profile", "stop", server)
    kept = host.root.json("profile", "show", "--format", "json", KEPT)
    assert {"/one", "/three"} <= kept["written"].keys()
    assert ("/two" in kept["written"]) is is_there
    assert kept["incomplete_because"] == missing
    assert missing in host.root.give("profile", "apply", KEPT, server).err


def test_what_waits_for_a_start_still_does_after_insulad_was_killed(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    host.kill(signal.SIGKILL)
    host.start()
    assert "its recording begins when it starts" in host.root.fails("profile", "show", server)
    host.root("start", server)
    do(host, "/one")
    host.root("profile", "stop", server)
    kept = host.root.json("profile", "show", "--format", "json", KEPT)
    assert "/one" in kept["written"]
    assert (kept["is_from_birth"], kept["incomplete_because"]) == (True, "")


def test_a_life_that_begins_from_a_checkpoint_has_no_start(host: Host, server: str) -> None:
    host.root("start", server)
    host.root("checkpoint", "create", server)
    host.root("stop", "-t", "1", server)
    host.root("profile", "record", server)
    host.root("restore", server)
    do(host, "/one")
    host.root("profile", "stop", server)
    kept = host.root.json("profile", "show", "--format", "json", KEPT)
    assert "/one" in kept["written"]
    assert not kept["is_from_birth"]


def test_a_recording_goes_with_its_container(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    host.root("start", server)
    host.root("rm", "-f", server)
    assert list((host.folder / "state" / "recordings").iterdir()) == []
    assert "cannot find" in host.root.fails("profile", "show", server)

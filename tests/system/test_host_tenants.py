# SPDX-License-Identifier: Apache-2.0
"""Two ordinary users of one host: neither sees, touches or uses what is the other's."""

import contextlib
import os
import select
import signal
from pathlib import Path

from hosted import Person, answered, wait_until

ON_SECRET = (
    "inspect secret", "logs secret", "exec secret true", "attach secret", "stop secret", "kill secret", "pause secret",
    "rm -f secret", "rename secret mine", "cp secret:/etc/motd -", "stats --no-stream secret", "top secret",
    "diff secret", "wait secret", "checkpoint create secret", "start secret", "restart secret",
)  # fmt: skip


def test_nothing_can_be_done_to_anothers_container(alice: Person, bob: Person) -> None:
    identifier = alice("run", "-d", "--name", "secret", "box", "sleep", "1000")
    for line in ON_SECRET:
        ref = "secret" if len(line) % 2 else identifier
        done = bob.give(*(word.replace("secret", ref) for word in line.split()))
        assert done.code != 0 or line.startswith("rm"), (line, done)
        assert "cannot find" in done.err or line.startswith(("rm", "inspect")), (line, done)
    record = alice.look("secret")
    assert (record["status"], record["name"]) == ("running", "secret")


def test_names_are_each_ones_own(alice: Person, bob: Person) -> None:
    alice("run", "-d", "--name", "web", "-v", "data:/d", "box", "sh", "-c", "echo alice > /d/who; sleep 1000")
    bob("run", "-d", "--name", "web", "-v", "data:/d", "box", "sleep", "1000")
    assert bob.give("exec", "web", "cat", "/d/who").code == 1
    assert len(bob("ps", "-q").split()) == 1
    assert [each["tenant"] for each in bob.json("volume", "ls", "--format", "json")] == [bob.tenant]
    bob("rm", "-f", "web")
    assert alice.look("web")["status"] == "running"


def test_an_image_is_its_owners(alice: Person, bob: Person, image: bytes) -> None:
    alice("image", "import", "-", "mine", data=image)
    assert "cannot find image" in bob.fails("run", "--rm", "mine", "true", code=125)
    assert "mine" not in bob("image", "ls")
    alice("image", "rm", "mine")


def test_users_cannot_act_for_others_or_administrate(alice: Person) -> None:
    assert "cannot" in alice.fails("ps", "--all-tenants")
    assert "cannot" in alice.fails("host", "token")
    assert "does not grant it" in alice.fails(
        "network", "create", "n", "--uplink", "lo", "--subnet", "10.1.0.0/24"
    )
    denied = alice.fails("run", "--rm", "--cap-add", "SYS_ADMIN", "box", "true", code=125)
    assert "SYS_ADMIN" in denied


def test_an_administrator_sees_all(root: Person, alice: Person, bob: Person) -> None:
    for person in (alice, bob):
        person("run", "-d", "--name", f"of-{person.name}", "box", "sleep", "1000")
    listed = root("ps", "--all-tenants", "--format", "{{.Names}}").split()
    assert sorted(listed) == ["of-alice", "of-bob"]
    assert root("ps", "-q") == ""
    measured = root.json("--tenant", "*", "stats", "--no-stream", "--format", "json")
    assert sorted(each["name"] for each in measured) == ["of-alice", "of-bob"]
    assert root.json("stats", "--no-stream", "--format", "json") == []


def test_programs_of_two_users_have_other_ids_on_the_host(alice: Person, bob: Person) -> None:
    found = []
    for person in (alice, bob):
        person("run", "-d", "--name", "c", "box", "sleep", "1000")
        pid = person.look("c")["pid"]
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found.append(int(status["Uid"].split()[0]))
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
    assert abs(found[0] - found[1]) >= 65536
    assert all(uid >= 0x20000000 for uid in found)


def test_a_users_program_sees_neither_host_nor_neighbour(alice: Person, bob: Person) -> None:
    bob("run", "-d", "--name", "n", "box", "sleep", "4242")
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    seen = alice("exec", "c", "ps")
    assert "4242" not in seen and "python" not in seen
    refused = (
        "mount -t tmpfs x /mnt", "mknod /var/sda b 8 0", "echo 1 > /proc/sys/kernel/panic",
        "cat /proc/kcore", "chroot /proc/1/root/../.. true && exit 1; false", "reboot -f",
    )  # fmt: skip
    for script in refused:
        assert alice.give("exec", "c", "sh", "-c", script).code != 0, script
    assert alice.look("c")["status"] == "running"


def test_a_signal_from_another_user_on_the_host_does_nothing(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    pid = alice.look("c")["pid"]
    child = os.fork()
    if child == 0:
        os.setgid(100)
        os.setuid(64712)
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert alice.look("c")["status"] == "running"


def test_a_user_who_waits_for_much_lets_others_work(alice: Person, bob: Person) -> None:
    """60 stops that take a minute, and 60 waits, nearly all the connections that a user may have: others are answered."""
    alice(
        "run",
        "-d",
        "--name",
        "deaf",
        "box",
        "sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    )
    wait_until(lambda: "ready" in alice("logs", "deaf"), what="the trap")
    with contextlib.ExitStack() as held:
        waits = [held.enter_context(alice.asking("GET", "/v1/containers/deaf/wait")) for _ in range(60)]
        body = b'{"timeout_s": 60}'
        stops = [
            held.enter_context(alice.asking("POST", "/v1/containers/deaf/stop", body=body)) for _ in range(60)
        ]
        assert bob("run", "--rm", "box", "echo", "served") == "served"
        assert bob("ps", "-q") == ""
        assert alice("ps", "-q") != ""
        assert select.select([*waits, *stops], [], [], 0)[0] == []
        alice("kill", "deaf")
        assert {answered(each)[0] for each in stops} <= {204, 304}
        assert [answered(each) for each in waits] == [(200, {"exit_code": 137, "error": ""})] * 60


def test_a_stop_goes_on_when_its_client_has_gone(alice: Person) -> None:
    alice(
        "run",
        "-d",
        "--name",
        "deaf",
        "box",
        "sh",
        "-c",
        "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done",
    )
    wait_until(lambda: "ready" in alice("logs", "deaf"), what="the trap")
    with alice.asking("POST", "/v1/containers/deaf/stop", body=b'{"timeout_s": 2}'):
        wait_until(lambda: "asked" in alice("logs", "deaf"), what="the signal")
    alice.wait_for("deaf", status="exited", exit_code=137)


def test_how_long_a_stop_may_take_has_limits(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    for wrong in ("-1", "100000000"):
        body = f'{{"timeout_s": {wrong}}}'.encode()
        status, answer = alice.ask("POST", "/v1/containers/c/stop", body=body)
        assert (status, answer["error"]["code"]) == (400, "invalid_spec"), answer
    assert alice.look("c")["status"] == "running"

# SPDX-License-Identifier: Apache-2.0
"""insulad is killed while containers run and end: none is harmed, the next one finds all of them.  And: the host goes down."""

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from hosted import Host, Person, wait_until
from insula.kernel.criu_find import find_criu
from insula.runtime.fault import VARIABLE, Note
from waiting import DEADLINE_S


@pytest.fixture
def module_host(program: Path, image: bytes) -> Iterator[Host]:
    """A host of its own for each test here: insulad's process is another one after it."""
    with hosted.host(program, image) as made:
        yield made


def kill_and_end(host: Host, *pids: int) -> None:
    """Kill insulad, then programs of containers, and wait until these have ended; nobody hears of it."""
    handles = [os.pidfd_open(pid) for pid in pids]
    host.kill()
    for handle in handles:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle, pid in zip(handles, pids, strict=True):
        os.close(handle)
        wait_until(lambda pid=pid: not is_alive(pid), what=f"{pid} ends")  # type: ignore[misc]


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    """Return the parent, 0 of who has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


def test_containers_go_on_and_are_found_again(host: Host, alice: Person, bob: Person) -> None:
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    alice("run", "-d", "--name", "talker", "-p", "18080:80", "box", "sh", "-c", script)
    bob("run", "-d", "-i", "--name", "echo", "box", "sh", "-c", "while read x; do echo got $x; done; exit 3")
    alice("create", "--name", "idle", "box", "true")
    before = [alice.look("talker"), bob.look("echo")]
    host.kill()
    host.start()
    after = [alice.look("talker"), bob.look("echo")]
    assert after == before
    assert alice.look("idle")["status"] == "created"
    lines = len(alice("logs", "talker").splitlines())
    wait_until(lambda: len(alice("logs", "talker").splitlines()) > lines, what="it talks on")
    seen = alice("logs", "talker").splitlines()
    assert seen == [f"line {number}" for number in range(1, len(seen) + 1)]
    assert alice("exec", "talker", "echo", "in") == "in"
    with bob.begin("attach", "echo", stdin=subprocess.PIPE) as process:
        out, _ = process.communicate(b"hello\n", timeout=DEADLINE_S)
    assert (process.returncode, out) == (3, b"got hello\n")
    assert "`talker`" in alice.fails("run", "--rm", "-p", "18080:81", "box", "true", code=125)


def test_ends_that_nobody_heard_are_written_down(host: Host, alice: Person) -> None:
    gate = "trap 'echo after; exit 17' USR1; echo before; while :; do sleep 0.02; done"
    alice("run", "-d", "--name", "c", "box", "sh", "-c", gate)
    alice("run", "-d", "--rm", "--name", "gone", "box", "sleep", "1000")
    alice("run", "-d", "--name", "killed", "box", "sleep", "1000")
    wait_until(lambda: "before" in alice("logs", "c"), what="it is ready")
    pid = int(alice.look("c")["pid"])
    others = [int(alice.look(name)["pid"]) for name in ("gone", "killed")]
    kill_and_end(host, *others)
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: not is_alive(pid), what="it ends by itself")
    host.start()
    record = alice.wait_for("c", status="exited")
    assert (record["exit_code"], record["pid"]) == (17, 0)
    assert record["finished_at"] > record["started_at"]
    assert alice("logs", "c").split() == ["before", "after"]
    assert alice.wait_for("killed", status="exited")["exit_code"] == 137
    wait_until(lambda: alice.give("inspect", "gone").code == 1, what="--rm is honoured")
    alice("start", "killed")
    assert alice("exec", "killed", "echo", "again") == "again"


def test_a_restart_policy_outlives_insulad(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "phoenix", "--restart", "always", "box", "sleep", "1000")
    pid = int(alice.look("phoenix")["pid"])
    kill_and_end(host, pid)
    host.start()
    wait_until(
        lambda: alice.look("phoenix")["status"] == "running" and alice.look("phoenix")["pid"] != pid,
        what="it is back",
    )
    alice("kill", "phoenix")
    wait_until(lambda: alice.look("phoenix")["restart_count"] >= 2, what="and again")


def test_always_is_started_with_insulad_and_unless_stopped_is_not(host: Host, alice: Person) -> None:
    for policy in ("always", "unless-stopped"):
        alice("run", "-d", "--name", policy, "--restart", policy, "box", "sleep", "1000")
        alice("stop", "-t", "0", policy)
    host.kill()
    host.start()
    alice.wait_for("always", status="running", stopped_by_user=False)
    assert alice.look("unless-stopped")["status"] == "exited"


def test_a_restart_that_was_waited_for_is_not_forgotten(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "loop", "--restart", "always", "box", "sh", "-c", "echo try; exit 1")
    wait_until(lambda: alice.look("loop")["restart_count"] >= 4, what="it was tried four times")
    host.kill()
    host.start()
    tries = len(alice("logs", "loop").split())
    wait_until(lambda: len(alice("logs", "loop").split()) > tries, what="it goes on trying")


def test_starting_does_not_wait_for_crashing_containers(host: Host, alice: Person) -> None:
    for name in ("a", "b", "c"):
        alice("run", "-d", "--name", name, "--restart", "always", "box", "sleep", "1000")
    kill_and_end(host, *(int(alice.look(name)["pid"]) for name in ("a", "b", "c")))
    host.start()
    for name in ("a", "b", "c"):
        wait_until(lambda name=name: alice.look(name)["status"] == "running", what="it is back")  # type: ignore[misc]


def test_a_paused_container_stays_paused(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    alice("pause", "c")
    host.kill()
    host.start()
    assert alice.look("c")["status"] == "paused"
    alice("unpause", "c")
    assert alice("exec", "c", "echo", "on") == "on"


def test_names_and_borders_hold_after_a_restart(host: Host, alice: Person, bob: Person) -> None:
    alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    address = alice.look("web")["attachment"]["address"]
    host.kill()
    host.start()
    assert address in alice("run", "--rm", "box", "nslookup", "web")
    assert alice.give("run", "--rm", "box", "ping", "-c", "1", "-W", "30", address).code == 0
    assert bob.give("run", "--rm", "box", "ping", "-c", "1", "-W", "1", address).code != 0


def test_a_client_is_told_that_the_daemon_has_gone(host: Host, alice: Person) -> None:
    with alice.begin("run", "--rm", "--name", "c", "box", "sleep", "1000") as process:
        wait_until(lambda: alice.give("exec", "c", "true").code == 0, what="it runs")
        host.kill()
        done = alice.give("ps")
        assert done.code == 1 and "insulad" in done.err and "Traceback" not in done.err
        host.start()
        alice("stop", "-t", "0", "c")
        # The streams are the spawner's: a running `insula run` notices nothing of insulad's restart.
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode in (143, 137)


def test_a_host_goes_down_and_comes_up_again(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "--restart", "always", "box", "sleep", "1000")
    alice("run", "-d", "--name", "d", "box", "sh", "-c", "echo kept > /var/x; sleep 1000")
    wait_until(lambda: alice.give("exec", "d", "cat", "/var/x").out == "kept\n", what="it is written")
    pids = [int(alice.look(name)["pid"]) for name in ("c", "d")]
    host.tear_down()
    assert not any(is_alive(pid) for pid in pids)
    assert [each for each in host.remains() if "/containers/" not in each] == []
    assert not (host.folder / "run/spawner.sock").exists()
    host.start()
    assert alice.look("d")["status"] == "exited"
    alice.wait_for("c", status="running")
    alice("start", "d")
    assert alice("exec", "d", "cat", "/var/x") == "kept"


def test_without_its_spawner_a_container_has_ended_and_can_be_started(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "-v", "v:/v", "box", "sleep", "1000")
    alice("run", "-d", "--name", "again", "--restart", "unless-stopped", "box", "sleep", "1000")
    pids = [int(alice.look(name)["pid"]) for name in ("c", "again")]
    spawner = parent_of(pids[0])
    host.kill()
    os.kill(spawner, signal.SIGKILL)
    wait_until(lambda: not is_alive(spawner), what="the spawner ends")
    host.start()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="what it left is ended")
    record = alice.look("c")
    assert (record["status"], record["exit_code"]) == ("exited", 255)
    assert "spawner" in record["error"]
    wait_until(lambda: alice.look("again")["status"] == "running", what="the policy brings it back")
    alice("start", "c")
    assert alice("exec", "c", "echo", "on") == "on"


def test_a_spawner_that_is_killed_is_replaced(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "c", "-p", "18081:80", "box", "sleep", "1000")
    alice("run", "-d", "--name", "again", "--restart", "always", "box", "sleep", "1000")
    alice("run", "-d", "--name", "gone", "--rm", "box", "sleep", "1000")
    pids = [int(alice.look(name)["pid"]) for name in ("c", "again", "gone")]
    spawner = parent_of(pids[0])
    os.kill(spawner, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="its containers end with it")
    record = alice.wait_for("c", status="exited")
    assert record["exit_code"] == 255 and "spawner" in record["error"]
    wait_until(lambda: alice.look("again")["pid"] not in (0, pids[1]), what="the policy brings it back")
    wait_until(lambda: alice.give("inspect", "gone").code == 1, what="--rm is honoured")
    alice("start", "c")
    assert alice("exec", "c", "echo", "on") == "on"


@pytest.mark.parametrize("point", list(Note))
def test_a_spawner_that_ends_before_a_start_is_written_down_is_not_overlooked(
    host: Host, alice: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, point: Note
) -> None:
    """Between its answer and the note that the container runs, another spawner is there already."""
    wish, gate = tmp_path / "wish", tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv(VARIABLE, f"@{wish}")
    host.kill()
    host.start()
    alice("run", "-d", "--name", "other", "box", "sleep", "1000")
    alice("run", "-d", "--name", "c", "--restart", "always", "box", "sleep", "1000")
    old = parent_of(int(alice.look("other")["pid"]))
    verb = "start"
    if point is Note.RESTORE:
        if find_criu() is None:
            pytest.skip("no CRIU that works")
        alice("checkpoint", "create", "c")
        verb = "restore"
    else:
        alice("stop", "-t", "0", "c")
    wish.write_text(f"{point}=wait:{gate}")
    starting = threading.Thread(target=alice.give, args=(verb, "c"))
    starting.start()
    reached = opened_for_writing(gate)
    wish.unlink()
    os.kill(old, signal.SIGKILL)
    alice.wait_for("other", status="exited")
    alice("start", "other")
    assert parent_of(int(alice.look("other")["pid"])) != old
    os.close(reached)
    starting.join()
    wait_until(
        lambda: runs_below(alice, parent_of(int(alice.look("other")["pid"]))),
        what="the policy brings it back",
    )
    assert alice("exec", "c", "echo", "on") == "on"


def opened_for_writing(gate: Path) -> int:
    """Wait until somebody reads at the gate, and keep it shut."""
    found: list[int] = []

    def has_reader() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads
            found.append(os.open(gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return bool(found)

    wait_until(has_reader, what="the point is reached")
    return found[0]


def runs_below(person: Person, spawner: int) -> bool:
    record = person.look("c")
    return record["status"] == "running" and is_alive(record["pid"]) and parent_of(record["pid"]) == spawner


def test_what_was_half_created_is_taken_back(host: Host, alice: Person) -> None:
    alice("create", "--name", "whole", "box", "true")
    half = host.folder / "state/containers" / ("0" * 64)
    host.kill()
    (half / "upper/etc").mkdir(parents=True)
    host.start()
    assert not half.exists()
    assert alice("start", "-a", "whole") == ""


def test_a_kill_at_any_moment_leaves_nothing_unknown(host: Host, alice: Person) -> None:
    """Kill insulad while containers are being created, started, stopped and removed; whatever came of them can go."""
    script = 'n=$1; for i in 1 2 3; do "$2" -H "$3" run -d --name c$n-$i box sh -c "sleep 0.1; exit 3"; done'
    for delay_s in (0.05, 0.2, 0.4):
        with alice.begin("version"):
            workers = [
                subprocess.Popen(
                    [
                        "sh",
                        "-c",
                        script,
                        "sh",
                        f"{delay_s}-{number}",
                        str(host.program),
                        f"unix://{host.socket_path}",
                    ],
                    user=alice.uid,
                    group=hosted.GROUP_ID,
                    extra_groups=[],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for number in range(2)
            ]
        select.select([], [], [], delay_s)  # the moment itself, not a wait for something
        host.kill()
        for worker in workers:
            worker.wait(timeout=DEADLINE_S)
        host.start()
        names = alice("ps", "-a", "--format", "{{.Names}}").split()
        wait_until(
            lambda names=names: all(alice.look(name)["status"] in ("exited", "created") for name in names),  # type: ignore[misc]
            what=lambda: alice("ps", "-a"),
        )
        assert all(alice.look(name)["exit_code"] in (3, None) for name in names)
        for name in names:
            if alice.look(name)["status"] == "created":
                alice("start", name)
                assert alice("wait", name) == "3"
    host.remove_all()
    wait_until(lambda: not host.remains(), what=lambda: f"gone: {host.remains()}")

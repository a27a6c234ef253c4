# SPDX-License-Identifier: Apache-2.0
"""The verbs for a container's life and what can be seen of it, by the CLI, on a real host."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hosted import Host, Person, add_file, answered, busybox_tar, wait_until
from waiting import DEADLINE_S


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that alice may write into."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_mode & 0o001 == 0:
            each.chmod(0o755)
    tmp_path.chmod(0o777)
    return tmp_path


def test_a_container_goes_through_its_whole_life(alice: Person) -> None:
    identifier = alice(
        "create", "--name", "life", "box", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"
    )
    assert alice.look("life")["status"] == "created"
    assert alice("ps", "-q") == ""
    assert alice("start", "life") == "life"
    assert alice("start", "life") == "life"
    assert "is running" in alice.fails("rm", "life")
    alice("stop", "-t", "0", "life")
    assert alice.look("life")["exit_code"] == 137
    alice("restart", "life")
    first = alice.look("life")["pid"]
    alice("restart", "-t", "0", "life")
    assert alice.look("life")["pid"] not in (0, first)
    alice("kill", "-s", "HUP", "life")
    assert alice("wait", "life") == "129"
    assert "not running" in alice.fails("kill", "life")
    alice("rename", "life", "afterlife")
    assert alice.look("afterlife")["id"] == identifier
    assert "no such container" in alice.fails("inspect", "life")
    assert alice("rm", "afterlife") == "afterlife"
    assert alice("ps", "-aq") == ""


def test_a_paused_container_does_nothing_until_it_goes_on(alice: Person) -> None:
    script = "trap 'echo over; exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i > /var/count; done"
    alice("run", "-d", "--name", "counter", "box", "sh", "-c", script)
    wait_until(lambda: alice.give("exec", "counter", "cat", "/var/count").out != "", what="it counts")
    alice("pause", "counter")
    record = alice.look("counter")
    assert record["status"] == "paused"
    path = Path(f"/proc/{record['pid']}/root/var/count")
    first = path.read_text()
    assert "paused" in alice.fails("exec", "counter", "true", code=125)
    assert path.read_text() == first
    alice("unpause", "counter")
    wait_until(lambda: path.read_text() not in ("", first), what="it goes on")
    alice("pause", "counter")
    alice("stop", "counter")
    assert alice.look("counter")["exit_code"] == 0


def test_exec_has_streams_exit_codes_user_folder_and_environment(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "-e", "A=1", "box", "sleep", "1000")
    script = "echo $A$B; pwd; id -u; cat; exit 9"
    words = ("-i", "-e", "B=2", "-w", "/etc", "-u", "guest")
    done = alice.give("exec", *words, "c", "sh", "-c", script, data=b"typed\n")
    assert (done.code, done.out.split()) == (9, ["12", "/etc", "1000", "typed"])
    assert alice.give("exec", "c", "nothing-here").code == 127
    assert alice.give("exec", "c", "/etc/motd").code == 126
    assert alice.give("exec", "nobody", "true").code == 125
    assert alice.give("exec", "c", "sh", "-c", "kill -USR1 $$").code == 138
    alice("exec", "-d", "c", "touch", "/var/detached")
    wait_until(lambda: alice.give("exec", "c", "test", "-e", "/var/detached").code == 0, what="it was made")


def test_a_program_beside_dies_with_its_container(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    with alice.begin("exec", "c", "sh", "-c", "echo in; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        alice("kill", "c")
        assert process.wait(timeout=DEADLINE_S) == 137


def test_logs_are_kept_in_order_and_by_stream(alice: Person) -> None:
    script = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; sleep 0.02; done; printf unfinished"
    alice("run", "--name", "c", "box", "sh", "-c", script)
    done = alice.give("logs", "c")
    assert done.out.split() == [*(f"out{i}" for i in range(1, 6)), "unfinished"]
    assert done.err.split() == [f"err{i}" for i in range(1, 6)]
    assert (
        len((alice.give("logs", "--tail", "3", "c").out + alice.give("logs", "-n", "3", "c").err).split())
        == 3
    )
    stamped = alice("logs", "-t", "c").splitlines()
    assert all(line.split()[0].endswith("Z") for line in stamped)
    assert alice("logs", "--since", "1h", "c").split()[0] == "out1"
    assert alice.give("logs", "--since", "2099-01-01T00:00:00Z", "c").out == ""
    for number, line in enumerate(stamped[:5], start=1):
        assert alice("logs", "--since", line.split()[0], "c").split()[0] == f"out{number}"


def test_followed_logs_end_with_the_container(alice: Person) -> None:
    alice("run", "-d", "-i", "--name", "c", "box", "sh", "-c", "echo one; read x; sleep 1000")
    with alice.begin("logs", "-f", "c") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        alice("stop", "-t", "0", "c")
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_attach_sees_what_comes_and_gives_the_exit_code(alice: Person) -> None:
    alice("run", "-d", "-i", "--name", "c", "box", "sh", "-c", "while read x; do echo got $x; done; exit 3")
    with alice.begin("attach", "c", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got hello\n"
        process.stdin.close()
        assert process.wait(timeout=DEADLINE_S) == 3
    assert alice("logs", "c") == "got hello"


def test_who_starts_and_attaches_to_one_that_runs_is_attached(alice: Person) -> None:
    program = "while [ ! -e /go ]; do echo here; sleep 0.05; done; exit 3"
    alice("run", "-d", "--name", "web", "box", "sh", "-c", program)
    with alice.begin("start", "-a", "web") as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        alice("exec", "web", "touch", "/go")
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3


def test_wait_answers_for_each(alice: Person) -> None:
    alice("run", "-d", "--name", "a", "box", "sh", "-c", "exit 4")
    alice("run", "-d", "--name", "b", "box", "sleep", "1000")
    with alice.begin("wait", "a", "b") as process:
        alice("kill", "b")
        out, _ = process.communicate(timeout=DEADLINE_S)
    assert out.split() == [b"4", b"137"]


def test_what_runs_is_listed_measured_and_compared(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sh", "-c", "echo x > /etc/new; rm /etc/motd; sleep 1000")
    rows: list[dict[str, Any]] = []

    def sleeps() -> bool:
        rows[:] = alice.json("top", "c", "--format", "json")
        return any(row["command"] == "sleep 1000" for row in rows)

    wait_until(sleeps, what=lambda: f"it sleeps: {rows}")
    assert all(row["uid"] in (0, None) or row["uid"] >= 0 for row in rows)
    (stats,) = alice.json("stats", "--no-stream", "--format", "json")
    assert stats["name"] == "c"
    assert stats["memory_bytes"] > 0
    assert stats["pids"] >= 1
    lines = alice("diff", "c").splitlines()
    assert {"A /etc/new", "D /etc/motd", "C /etc"} <= set(lines), lines
    assert not any("resolv.conf" in line or "/proc" in line or "/dev" in line for line in lines), lines


def test_tables_templates_and_json_are_the_same_facts(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    assert "NAMES" in alice("ps")
    assert alice.json("ps", "--format", "json")[0]["name"] == "c"
    assert alice("inspect", "-f", "{{.status}} {{.spec.image}}", "c") == "running box"
    assert alice("images", "-q") != ""


def test_files_are_copied_both_ways(alice: Person, folder: Path) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    source = folder / "tree"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").write_text("content\n")
    (source / "deep/file").chmod(0o750)
    (source / "link").symlink_to("deep/file")
    for each in (source, *source.rglob("*")):
        os.chown(each, alice.uid, 100, follow_symlinks=False)
    alice("cp", str(source), "c:/var")
    assert alice(
        "exec", "c", "sh", "-c", "cat /var/tree/link; stat -c %a:%u /var/tree/deep/file"
    ).split() == [
        "content",
        "750:0",
    ]
    alice("cp", "c:/var/tree", str(folder / "back"))
    assert (folder / "back/deep/file").read_text() == "content\n"
    assert (folder / "back/deep/file").stat().st_uid == alice.uid
    assert os.readlink(folder / "back/link") == "deep/file"
    alice("stop", "-t", "0", "c")
    alice("cp", str(source / "deep/file"), "c:/root/named")
    assert "named" in alice("cp", "c:/root/named", "-")
    alice("start", "c")
    assert alice("exec", "c", "cat", "/root/named") == "content"


def test_a_tar_goes_in_and_out_by_pipes(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sh", "-c", "mkdir /var/d; echo 1 > /var/d/x; sleep 1000")
    wait_until(lambda: alice.give("exec", "c", "cat", "/var/d/x").out == "1\n", what="it is there")
    with alice.begin("cp", "c:/var/d", "-") as process:
        data, _ = process.communicate(timeout=DEADLINE_S)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert sorted(each.name for each in tar) == ["d", "d/x"]
    alice("cp", "-", "c:/home", data=data)
    assert alice("exec", "c", "cat", "/home/d/x") == "1"


def test_the_root_of_a_container_is_a_tar_without_what_the_kernel_makes_up(alice: Person) -> None:
    alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    with alice.begin("cp", "web:/", "-") as process:
        data, said = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, said) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    assert {"rootfs/bin/busybox", "rootfs/dev", "rootfs/proc", "rootfs/sys"} <= set(names)
    assert not [name for name in names if name.startswith(("rootfs/proc/", "rootfs/sys/"))]
    assert "cannot " in alice.fails("cp", "web:/proc/1/mem", "-")


def test_who_reads_a_tar_no_further_is_no_failure_of_insulad(alice: Person, host: Host) -> None:
    alice(
        "run", "-d", "--name", "web", "box", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=64; sleep 1000"
    )
    wait_until(
        lambda: "67108864" in alice.give("exec", "web", "stat", "-c", "%s", "/big").out, what="a big file"
    )
    with alice.begin("cp", "web:/big", "-") as process:
        assert process.stdout is not None and process.stdout.read(1)
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 141
    alice("rm", "-f", "web")
    assert "never retrieved" not in host.log()


def test_volumes_and_networks_have_their_own_commands(alice: Person) -> None:
    assert alice("volume", "create", "v", "-l", "purpose=test") == "v"
    assert alice("volume", "ls", "-q") == "v"
    assert alice.json("volume", "inspect", "v")[0]["labels"] == {"purpose": "test"}
    alice("create", "--name", "c", "-v", "v:/v", "--network", "default", "box", "true")
    assert "`c` uses it" in alice.fails("volume", "rm", "v")
    assert alice("network", "create", "n", "--subnet", "10.213.77.0/24")
    assert alice.json("network", "inspect", "n")[0]["subnet"] == "10.213.77.0/24"
    assert "n" in alice("network", "ls", "-q") or "n" in alice("network", "ls")
    alice("create", "--name", "d", "--network", "n", "box", "true")
    assert "have an address" in alice.fails("network", "rm", "n")
    alice("rm", "c", "d")
    alice("network", "rm", "n")
    alice("volume", "rm", "v")


def test_images_have_their_own_commands(alice: Person) -> None:
    other = busybox_tar(extra=lambda tar: add_file(tar, "etc/other", b"other\n"))
    identifier = alice("image", "import", "-", "other:1", data=other)
    record = alice.json("image", "inspect", "other:1")[0]
    assert record["id"] == identifier
    assert "other:1" in json.dumps(alice.json("image", "ls", "--format", "json"))
    alice("run", "--name", "c", "other:1", "true")
    assert "uses it" in alice.fails("image", "rm", "other:1")
    alice("rm", "c")
    alice("image", "rm", "other:1")
    assert "cannot find image" in alice.fails("image", "inspect", "other:1")
    assert alice("run", "--rm", "box", "echo", "still") == "still"


def test_the_host_tells_of_itself(root: Person, host: Host) -> None:
    facts = root.json("host", "info", "--format", "json")
    assert facts["name"] == "solo"
    assert facts["state_folder"] == str(host.folder / "state")
    assert "insulad" in root("version")


def test_many_at_once_do_not_disturb_each_other(alice: Person, bob: Person) -> None:
    running = [
        (f"{person.name}-{number}", person.begin("run", "--rm", "box", "echo", f"{person.name}-{number}"))
        for number in range(8)
        for person in (alice, bob)
    ]
    for word, process in running:
        with process:
            out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out) == (0, f"{word}\n".encode()), err
    assert alice("ps", "-aq") == bob("ps", "-aq") == ""


def test_only_one_of_many_gets_a_name(alice: Person) -> None:
    running = [alice.begin("create", "--name", "one", "box", "true") for _ in range(6)]
    codes = []
    for process in running:
        with process:
            process.communicate(timeout=DEADLINE_S)
        codes.append(process.returncode)
    assert sorted(codes) == [0, 125, 125, 125, 125, 125]
    assert len(alice("ps", "-aq").split()) == 1


def test_removing_what_is_not_there_by_force_tells_and_is_no_failure(alice: Person) -> None:
    alice("create", "--name", "there", "box", "true")
    done = alice.give("rm", "-f", "missing", "there")
    assert (done.code, done.out) == (0, "there\n")
    assert "cannot find container `missing`" in done.err
    assert "cannot find" in alice.fails("rm", "missing")


def test_a_tmpfs_has_the_size_that_was_wished(alice: Person) -> None:
    for mount in ("--mount=type=tmpfs,target=/t,size=3m", "--tmpfs=/t:size=3m"):
        assert "3.0M" in alice("run", "--rm", mount, "box", "df", "-h", "/t")
    assert "only a tmpfs" in alice.fails("run", "--rm", "--mount=target=/t,size=3m", "box", "true", code=125)


def test_a_container_that_starts_is_removed_by_force(alice: Person) -> None:
    for _ in range(10):
        container = alice("create", "box", "sleep", "1000")
        with alice.asking("POST", f"/v1/containers/{container}/start") as starting:
            status, said = alice.ask("DELETE", f"/v1/containers/{container}?force=1")
            answered(starting)
        assert status == 204, said
        assert container not in alice("ps", "-aq", "--no-trunc").split()

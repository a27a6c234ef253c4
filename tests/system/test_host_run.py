# SPDX-License-Identifier: Apache-2.0
"""`insula run` on a real host: what its options do, its exit codes, its signals, its terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import time
from contextlib import closing
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from searched import found_below
from waiting import DEADLINE_S


class Terminal:
    """A pty with somebody at it: types, reads, changes the window."""

    def __init__(self, rows: int, columns: int) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = ""
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, *, deadline_s: float = DEADLINE_S) -> str:
        """Read until the pattern is there; what came until then is taken."""
        end = time.monotonic() + deadline_s
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} not in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found[0]

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


def test_what_a_program_writes_comes_back_on_its_streams(alice: Person) -> None:
    done = alice.give(
        "run", "--rm", "-i", "box", "sh", "-c", "cat; echo trouble >&2; exit 7", data=b"hello\n"
    )
    assert (done.code, done.out, done.err) == (7, "hello\n", "trouble\n")
    assert alice("ps", "-aq") == ""


def test_the_hosts_own_programs_run_without_its_secrets(alice: Person) -> None:
    script = "id -u; ls -A /root /home; cat /etc/shadow; python3 -c 'print(6*7)'"
    done = alice.give("run", "--rm", "host", "sh", "-c", script)
    assert [line for line in done.out.splitlines() if line] == ["0", "/home:", "/root:", "42"], done


def test_a_detached_container_prints_its_id_and_goes_on(alice: Person) -> None:
    identifier = alice("run", "-d", "--name", "long", "box", "sleep", "1000")
    assert re.fullmatch(r"[0-9a-f]{64}", identifier)
    assert alice("ps", "--format", "{{.Names}}") == "long"
    assert alice.look(identifier[:8])["status"] == "running"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("box", "sh", "-c", "exit 3"), 3),
        (("box", "sh", "-c", "kill -9 $$"), 137),
        (("box", "sh", "-c", "kill -TERM $$"), 143),
        (("box", "no-such-program"), 127),
        (("box", "/no/such/program"), 127),
        (("box", "/etc/motd"), 126),
        (("box", "/etc"), 126),
        (("no-such-image", "true"), 125),
        (("--no-such-option", "box", "true"), 125),
    ],
)
def test_the_exit_code_is_dockers(alice: Person, words: tuple[str, ...], code: int) -> None:
    done = alice.give("run", "--rm", *words)
    assert done.code == code, done
    assert alice("ps", "-aq") == ""


def test_environment_folder_user_and_names(alice: Person) -> None:
    script = "echo $A $B; pwd; id -u; id -g; hostname; cat /etc/hostname; echo $HOSTNAME"
    words = ("-e", "A=1", "-e", "B=two words", "-w", "/var", "-u", "guest", "--hostname", "reef")
    out = alice("run", "--rm", *words, "box", "sh", "-c", script).splitlines()
    assert out == ["1 two words", "/var", "1000", "1000", "reef", "reef", "reef"]
    assert alice("run", "--rm", "-u", "7:8", "box", "sh", "-c", "id -u; id -g").split() == ["7", "8"]


def test_an_entrypoint_replaces_and_a_missing_user_is_named(alice: Person) -> None:
    assert alice("run", "--rm", "--entrypoint", "echo", "box", "a", "b") == "a b"
    assert "`nobody-here`" in alice.fails("run", "--rm", "-u", "nobody-here", "box", "true", code=125)


def test_the_program_is_a_child_of_a_small_init_that_reaps(alice: Person) -> None:
    # Who has just ended is a zombie for a moment.
    script = "(sleep 0 & ) ; cat /proc/1/comm; while ps -o stat | grep -q Z; do sleep 0.1; done; echo reaped"
    comm, end = alice("run", "--rm", "box", "sh", "-c", script).split()
    assert comm != "sh"
    assert end == "reaped"


def test_with_init_the_program_is_pid_1_itself(alice: Person) -> None:
    assert alice("run", "--rm", "--init", "box", "sh", "-c", "echo $$") == "1"


def test_a_read_only_root_and_a_tmpfs(alice: Person) -> None:
    script = (
        "echo x > /var/x || echo refused; echo y > /scratch/y && cat /scratch/y; df -k /scratch | tail -1"
    )
    done = alice.give("run", "--rm", "--read-only", "--tmpfs", "/scratch:size=2m", "box", "sh", "-c", script)
    lines = done.out.splitlines()
    assert lines[:2] == ["refused", "y"], done
    assert "2048" in lines[2]


def test_a_volume_outlives_its_containers(alice: Person) -> None:
    alice("run", "--rm", "-v", "data:/data", "box", "sh", "-c", "echo kept > /data/x")
    assert alice("run", "--rm", "-v", "data:/mnt:ro", "box", "cat", "/mnt/x") == "kept"
    refused = alice.give("run", "--rm", "-v", "data:/mnt:ro", "box", "sh", "-c", "echo no > /mnt/x")
    assert refused.code == 1
    assert "Read-only" in refused.err


def test_an_anonymous_volume_goes_with_its_container(alice: Person) -> None:
    alice("run", "--rm", "-v", "/data", "box", "touch", "/data/x")
    assert alice("volume", "ls", "-q") == ""


def test_folders_that_the_policy_does_not_grant_are_mounted_by_an_admin_only(
    root: Person, alice: Person, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o755)
    (tmp_path / "x").write_text("from the host\n")
    mount = f"type=bind,source={tmp_path},target=/host,readonly"
    assert root("run", "--rm", "--mount", mount, "box", "cat", "/host/x") == "from the host"
    assert root("run", "--rm", "-v", f"{tmp_path}/x:/one:ro", "box", "cat", "/one") == "from the host"
    assert "the policy does not grant it" in alice.fails(
        "run", "--rm", "--mount", mount, "box", "true", code=125
    )
    assert "the policy does not grant it" in alice.fails(
        "run", "--rm", "-v", "/etc:/x", "box", "true", code=125
    )
    assert alice("ps", "-aq") == ""


def test_memory_over_the_limit_ends_the_program_and_says_so(alice: Person) -> None:
    alice.give("run", "--name", "greedy", "-m", "16m", "--memory-swap", "16m", "box", "tail", "/dev/zero")
    record = alice.look("greedy")
    assert (record["exit_code"], record["oom_killed"]) == (137, True)


def test_limits_are_the_kernels(alice: Person) -> None:
    alice(
        "run", "-d", "--name", "small", "-m", "32m", "--cpus", "0.5", "--pids", "20", "box", "sleep", "1000"
    )
    (row,) = alice.json("stats", "--no-stream", "--format", "json", "small")
    assert (row["memory_limit_bytes"], row["pids_limit"]) == (32 << 20, 20)
    forks = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; wait"
    done = alice.give("exec", "small", "sh", "-c", forks)
    assert "fork" in done.err


def test_half_a_cpu_is_half_a_cpu(alice: Person) -> None:
    alice("run", "-d", "--name", "busy", "--cpus", "0.2", "box", "sh", "-c", "while :; do :; done")
    record = alice.look("busy")
    names = (f"**/{record['id']}/{name}" for name in ("cpuacct.usage", "cpu.stat"))
    group = next(Path(each) for name in names for each in found_below("/sys/fs/cgroup", name))

    def usage_s() -> float:
        text = group.read_text()
        return int(text) / 1e9 if group.name == "cpuacct.usage" else int(text.split()[1]) / 1e6

    before, begun = usage_s(), time.monotonic()
    select.select([], [], [], 1.0)
    assert (usage_s() - before) / (time.monotonic() - begun) < 0.3


def test_on_failure_tries_again_and_gives_up(alice: Person) -> None:
    alice("run", "-d", "--name", "flaky", "--restart", "on-failure:2", "box", "sh", "-c", "echo try; exit 9")
    alice.wait_for("flaky", status="exited", restart_count=2)
    assert alice("logs", "flaky").split() == ["try"] * 3
    assert alice.look("flaky")["exit_code"] == 9


def test_always_comes_back_until_somebody_stops_it(alice: Person) -> None:
    alice("run", "-d", "--name", "phoenix", "--restart", "always", "box", "sleep", "1000")
    first = alice.look("phoenix")
    alice("kill", "phoenix")
    wait_until(
        lambda: alice.look("phoenix")["status"] == "running" and alice.look("phoenix")["pid"] != first["pid"],
        what="it runs again",
    )
    alice("stop", "-t", "0", "phoenix")
    assert alice.look("phoenix")["status"] == "exited"


def test_a_bind_mount_of_root_is_roots_inside(root: Person, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of root")
    (tmp_path / "secret").chmod(0o600)
    words = ("run", "--rm", "-v", f"{tmp_path}:/host", "box", "sh", "-c")
    assert root(*words, "stat -c %u /host/secret; cat /host/secret; echo new > /host/new") == "0\nof root"
    made = (tmp_path / "new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)


def test_a_bind_mount_without_id_mapping_is_nobodys(root: Person) -> None:
    seen = root("run", "--rm", "-v", "/proc/sys/kernel:/host:ro", "box", "stat", "-c", "%u", "/host/ostype")
    assert seen == "65534"


def test_a_restart_that_fails_is_tried_again(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "web", "--restart", "always", "-p", "18080:80", "box", "sleep", "1000")
    with host.entered():
        other = socket.create_server(("0.0.0.0", 18080))
    with other:
        alice("kill", "web")
        wait_until(lambda: alice.look("web")["restart_count"] >= 2, what="it was tried twice")
        record = alice.look("web")
        assert record["status"] == "exited" and "18080" in record["error"], record
    record = alice.wait_for("web", status="running")
    assert record["error"] == ""


def test_a_restart_on_failure_that_fails_is_counted(host: Host, alice: Person) -> None:
    alice("run", "-d", "--name", "web", "--restart", "on-failure:2", "-p", "18080:80", "box", "sleep", "1000")
    with host.entered():
        other = socket.create_server(("0.0.0.0", 18080))
    with other:
        alice("kill", "web")
        alice.wait_for("web", restart_count=2, status="exited")
        select.select([], [], [], 1.0)
        assert alice.look("web")["restart_count"] == 2


def test_stop_ends_a_container_that_waits_for_its_next_try(alice: Person) -> None:
    alice("run", "-d", "--name", "loop", "--restart", "always", "box", "false")
    wait_until(lambda: alice.look("loop")["restart_count"] >= 3, what="it was tried three times")
    alice("stop", "loop")
    count = alice.look("loop")["restart_count"]
    assert alice.look("loop")["stopped_by_user"]
    select.select([], [], [], 1.8)
    record = alice.look("loop")
    assert (record["status"], record["restart_count"]) == ("exited", count)


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1"])
def test_signals_reach_the_program(alice: Person, name: str) -> None:
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    process = alice.begin("run", "--rm", "box", "sh", "-c", script)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (5, f"got {name}\n".encode()), err


def test_a_terminal_has_its_size_its_keys_and_its_changes(alice: Person) -> None:
    with closing(Terminal(33, 101)) as terminal:
        process = alice.begin(
            "run", "--rm", "-it", "--name", "term", "box", "sh",
            stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
        )  # fmt: skip
        with process:
            terminal.expect("# ")
            terminal.type("stty size; tty\n")
            terminal.expect("33 101\r\n")
            terminal.expect("/dev/pts/0|/dev/console")
            terminal.resize(40, 120)
            process.send_signal(signal.SIGWINCH)
            terminal.type('until stty size | grep "^40 120$"; do sleep 0.1; done\n')
            terminal.expect("\n40 120\r\n")
            terminal.type("sleep 1000\n")
            terminal.expect("sleep 1000")
            wait_until(lambda: "sleep 1000" in alice("top", "term"), what="sleep runs")
            terminal.type("\x03")
            terminal.expect("# ")
            terminal.type("exit 4\n")
            assert process.wait(timeout=DEADLINE_S) == 4


def test_keys_leave_a_terminal_and_attach_comes_back_to_it(alice: Person) -> None:
    with closing(Terminal(24, 80)) as terminal:
        ends = {"stdin": terminal.slave, "stdout": terminal.slave, "stderr": terminal.slave}
        with alice.begin("run", "-it", "--name", "term", "box", "sh", **ends) as process:
            terminal.expect("# ")
            terminal.type("x=remembered\n")
            terminal.expect("# ")
            terminal.type("\x10\x11")
            assert process.wait(timeout=DEADLINE_S) == 0
        terminal.expect("left `term` running")
        with alice.begin("attach", "term", **ends) as process:
            wait_until(lambda: not termios.tcgetattr(terminal.slave)[3] & termios.ECHO, what="raw mode")
            terminal.type("echo $x\nexit 6\n")
            terminal.expect("remembered\r\n")
            assert process.wait(timeout=DEADLINE_S) == 6
        assert termios.tcgetattr(terminal.slave)[3] & termios.ECHO


def test_a_terminal_is_refused_where_there_is_none(alice: Person) -> None:
    assert "not a terminal" in alice.fails("run", "--rm", "-it", "box", "sh", code=125)


def test_much_output_arrives_whole(alice: Person) -> None:
    done = alice.give("run", "--rm", "box", "sh", "-c", "yes 0123456789 | head -c 20000000")
    assert (done.code, len(done.out)) == (0, 20_000_000)


def test_exec_has_a_terminal_of_its_own(alice: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    with closing(Terminal(21, 77)) as terminal:
        ends = {"stdin": terminal.slave, "stdout": terminal.slave, "stderr": terminal.slave}
        with alice.begin("exec", "-it", "c", "sh", **ends) as process:
            terminal.expect("# ")
            terminal.type("stty size\n")
            terminal.expect("21 77\r\n")
            terminal.resize(22, 78)
            process.send_signal(signal.SIGWINCH)
            terminal.type('until stty size | grep "^22 78$"; do sleep 0.1; done\n')
            terminal.expect("\n22 78\r\n")
            terminal.type("sleep 2000\n")
            wait_until(lambda: "sleep 2000" in alice("top", "c"), what="sleep runs")
            terminal.type("\x03")
            terminal.expect("# ")
            terminal.type("exit 8\n")
            assert process.wait(timeout=DEADLINE_S) == 8
    assert alice.look("c")["status"] == "running"

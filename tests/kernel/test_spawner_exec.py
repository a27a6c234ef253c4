# SPDX-License-Identifier: Apache-2.0
"""Programs that are added to a running container."""

import os
import signal
from pathlib import Path

import pytest

from insula.model import stream
from spawned import Refused, Spawned, Started, is_alive, status_of, wait_until

KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")
NOTHING = "0000000000000000"


@pytest.fixture
def container(host: Spawned) -> Started:
    return host.start("/bin/sleep", "1000")


def test_exit_code_and_streams(host: Spawned, container: Started) -> None:
    ended = host.execute_shell(container, "echo out; echo err >&2; exit 6")
    assert (ended.code, ended.out, ended.err) == (6, "out\n", "err\n")
    assert container.logged() == "", "what is added is not logged"


def test_death_by_signal(host: Spawned, container: Started) -> None:
    pid, attached = host.execute(container, "/bin/sleep", "1000")
    os.kill(pid, signal.SIGTERM)
    assert attached.wait_exit() == 143


def test_stdin(host: Spawned, container: Started) -> None:
    _, attached = host.execute(container, "/bin/wc", "-c", stdin_open=True)
    attached.type(b"12345")
    attached.type(b"")
    assert attached.wait_exit() == 0
    assert attached.collected() == b"5\n"


def test_terminal(host: Spawned, container: Started) -> None:
    _, attached = host.execute(
        container, "/bin/sh", "-c", "tty; stty size; read x; echo got-$x", tty=True, rows=20, columns=70
    )
    attached.read_until(b"20 70")
    assert b"/dev/pts/" in attached.collected()
    attached.type(b"w\n")
    assert attached.wait_exit() == 0
    assert b"got-w" in attached.collected()


def test_namespaces_are_those_of_pid_1_and_the_parent_is_the_spawner(
    host: Spawned, container: Started
) -> None:
    pid, _ = host.execute(container, "/bin/sleep", "1000")
    for kind in KINDS:
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{container.pid}/ns/{kind}"), kind
    status = status_of(pid)
    assert int(status["PPid"]) == host.process.pid
    assert os.readlink(f"/proc/{pid}/root") == "/" and os.readlink(f"/proc/{pid}/cwd") == "/"
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{container.pid}/cgroup").read_text()


def test_rights_are_those_of_pid_1(host: Spawned, container: Started) -> None:
    pid, _ = host.execute(container, "/bin/sleep", "1000")
    added, first = status_of(pid), status_of(container.pid)
    for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid"):
        assert added[key] == first[key], key
    assert (added["NoNewPrivs"], added["Seccomp"]) == ("1", "2")
    assert (added["SigIgn"], added["SigBlk"]) == (NOTHING, NOTHING)


def test_it_leads_a_session_of_the_container(host: Spawned, container: Started) -> None:
    # CRIU dumps no process whose session leader lies outside.
    pid, _ = host.execute(container, "/bin/sleep", "1000")
    assert os.getsid(pid) == pid
    assert status_of(pid)["NSsid"].split()[-1] == status_of(pid)["NSpid"].split()[-1] != "0"


def test_as_another_user(host: Spawned, container: Started) -> None:
    ended = host.execute_shell(container, "id -u; id -G; grep CapEff /proc/self/status", user="user")
    assert ended.out.split() == ["1000", "1000", "2000", "CapEff:", NOTHING]


def test_refusals_are_told_and_leave_nothing(host: Spawned, container: Started) -> None:
    descriptors = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    for argv, changes, code in (
        (("no-such-program",), {}, "command_not_found"),
        (("/bin/no-program",), {}, "command_not_executable"),
        (("/bin/true",), {"user": "nobody-here"}, "invalid_spec"),
        (("/bin/true",), {"working_directory": "/etc/passwd"}, "start_failed"),
        (("no-such-program",), {"tty": True}, "command_not_found"),
    ):
        with pytest.raises(Refused) as refused:
            host.execute(container, *argv, **changes)
        assert refused.value.failure.code == code
    wait_until(lambda: host.group(container).pids() == [container.pid], what="no process is left")
    wait_until(
        lambda: len(os.listdir(f"/proc/{host.process.pid}/fd")) <= descriptors, what="no descriptor is left"
    )


def test_ended_container_refuses(host: Spawned, container: Started) -> None:
    host.end(container)
    with pytest.raises(Refused) as refused:
        host.execute(container, "/bin/true")
    assert refused.value.failure.code == "wrong_state"


def test_unknown_container_refuses(host: Spawned, container: Started) -> None:
    host.end(container)
    host.client.ask("forget", key=container.key)
    with pytest.raises(Refused):
        host.execute(container, "/bin/true")


def test_it_ends_with_its_container(host: Spawned, container: Started) -> None:
    pid, attached = host.execute(container, "/bin/sleep", "1000")
    host.end(container)
    assert attached.wait_exit() == 137
    wait_until(lambda: not is_alive(pid), what="the program is reaped")


def test_it_survives_the_client(host: Spawned, container: Started) -> None:
    pid, attached = host.execute(container, "/bin/sh", "-c", "sleep 0.2; echo done; sleep 1000")
    host.reconnect()
    attached.close()
    host.client.ask("hello")
    assert is_alive(pid)


def test_what_is_executed_is_the_images_own_file(host: Spawned, container: Started) -> None:
    pid, _ = host.execute(container, "/bin/sleep", "1000")
    assert os.readlink(f"/proc/{pid}/exe") == "/bin/busybox"
    theirs, ours = os.stat(f"/proc/{pid}/exe"), os.stat(f"/proc/{host.process.pid}/exe")
    assert (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)
    ended = host.execute_shell(container, "readlink /proc/self/exe; echo x >> /proc/self/exe")
    assert ended.out == "/bin/busybox\n"
    assert "Text file busy" in ended.err


def test_nobody_inside_sees_the_spawners_interpreter_on_the_way(host: Spawned) -> None:
    script = "while true; do for each in /proc/[0-9]*; do readlink $each/exe; done; done"
    spy = host.start("/bin/sh", "-c", script, attach=True)
    for _ in range(40):
        assert host.execute_shell(spy, "exit 0").code == 0
    host.end(spy)
    assert set(spy.logged().split()) <= {"/bin/busybox"}, set(spy.logged().split())


def test_setuid_files_give_nothing(host: Spawned) -> None:
    usr = host.plan("/bin/true", python=True).mounts
    container = host.start("/bin/sleep", "1000", mounts=usr)
    ended = host.execute_shell(container, "/bin/setuid-id -u; /bin/setuid-id -ru", user="user")
    assert ended.out.split() == ["1000", "1000"], ended.err


def test_descriptors_are_the_three(host: Spawned, container: Started) -> None:
    for changes in ({}, {"stdin_open": True}, {"tty": True}):
        pid, _ = host.execute(container, "/bin/sleep", "1000", **changes)
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]


def test_signal_frame(host: Spawned, container: Started) -> None:
    _, attached = host.execute(container, "/bin/sleep", "1000")
    attached.send(stream.SIGNAL, bytes([signal.SIGKILL]))
    assert attached.wait_exit() == 137

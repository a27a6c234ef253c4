# SPDX-License-Identifier: Apache-2.0
"""Starts and ends of containers: exit codes, refused starts that leave nothing, a client that dies and comes back."""

import os
import signal
import uuid
from operator import le
from pathlib import Path

import pytest

from insula.boot.protocol import LimitsPlan, MountPlan, NetworkPlan
from spawned import Client, Refused, Spawned, is_alive, status_of, wait_until

FOREVER = ("/bin/sleep", "1000")


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_is_the_programs(host: Spawned, code: int) -> None:
    assert host.run_shell(f"exit {code}").code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_death_by_signal_is_128_and_its_number(host: Spawned, number: signal.Signals) -> None:
    # The program is a child of init: pid 1 of a pid namespace ignores what it does not handle.
    ended = host.run_shell(f"kill -{int(number)} $$", init="/bin/tini")
    assert ended.code == 128 + number


def test_kill_ends_pid_1_with_137(host: Spawned) -> None:
    assert host.end(host.start(*FOREVER)) == 137


def test_sigterm_ends_a_program_below_init(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "echo ready; exec sleep 1000", init="/bin/tini")
    wait_until(lambda: "ready" in container.logged(), what="the program runs")
    host.signal(container, signal.SIGTERM)
    assert host.client.wait_exit(container.key) == 143


def test_signals_are_as_after_a_boot(host: Spawned) -> None:
    text = host.run_to_end("/bin/grep", "-E", "Sig(Ign|Blk|Cgt)", "/proc/self/status").out
    assert [line.split()[1].strip("0") for line in text.splitlines()] == [""] * 3, text


def test_signal_to_an_ended_container_is_refused(host: Spawned) -> None:
    container = host.start("/bin/true")
    host.client.wait_exit(container.key)
    with pytest.raises(Refused) as refused:
        host.signal(container, signal.SIGTERM)
    assert refused.value.failure.errno == 3


REFUSALS = {
    "not found": ({"argv": ("no-such-program",)}, "program", "command_not_found"),
    "path not found": ({"argv": ("/no/such/program",)}, "program", "command_not_found"),
    "no interpreter": ({"argv": ("/bin/no-interpreter",)}, "program", "command_not_found"),
    "not executable": ({"argv": ("/bin/no-program",)}, "program", "command_not_executable"),
    "a directory": ({"argv": ("/bin",)}, "program", "command_not_executable"),
    "user": ({"argv": ("/bin/true",), "user": "nobody-here"}, "program", "invalid_spec"),
    "group": ({"argv": ("/bin/true",), "user": "root:nobody-here"}, "program", "invalid_spec"),
    "uid above all": ({"argv": ("/bin/true",), "user": "65536"}, "program", "invalid_spec"),
    "uid 2**31": ({"argv": ("/bin/true",), "user": "2147483648"}, "program", "invalid_spec"),
    "uid 2**32": ({"argv": ("/bin/true",), "user": "4294967296"}, "program", "invalid_spec"),
    "uid -1": ({"argv": ("/bin/true",), "user": "-1"}, "program", "invalid_spec"),
    "folder": ({"argv": ("/bin/true",), "working_directory": "/etc/passwd"}, "program", "start_failed"),
    "resource": ({"argv": ("/bin/true",), "rlimits": {"nothing": 1}}, "program", "invalid_spec"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("tty", [False, True])
def test_refused_start_tells_why_and_leaves_nothing(host: Spawned, name: str, tty: bool) -> None:
    fields, step, code = REFUSALS[name]
    changes = dict(fields)
    before = _counts(host)
    with pytest.raises(Refused) as refused:
        host.start(*changes.pop("argv"), tty=tty, **changes)
    assert (refused.value.failure.step, refused.value.failure.code) == (step, code)
    assert refused.value.failure.message
    _assert_nothing_left(host, before)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"limits": LimitsPlan(pids=0)}, "cgroup"),
        ({"limits": LimitsPlan(cpu_quota_us=50_000, cpu_period_us=1)}, "cgroup"),
        ({"mounts": (MountPlan(kind="bind", source="/no/such/folder", target="/data"),)}, "rootfs"),
        ({"mounts": (MountPlan(kind="bind", source="/usr", target="/etc/passwd/below"),)}, "rootfs"),
        ({"hostname": "x" * 65}, "identity"),
        ({"lower": ("/no/such/layer",)}, "rootfs"),
    ],
)
def test_refused_preparation_leaves_nothing(host: Spawned, changes: dict[str, object], step: str) -> None:
    before = _counts(host)
    with pytest.raises(Refused) as refused:
        host.start("/bin/true", **changes)
    assert refused.value.failure.step == step
    _assert_nothing_left(host, before)


def _network(bridge: str) -> NetworkPlan:
    return NetworkPlan(
        interface=f"it{uuid.uuid4().hex[:8]}",
        bridge=bridge,
        mac="02:00:00:00:00:01",
        address="10.254.254.2",
        prefix_length=30,
        gateway="10.254.254.1",
    )


def test_refused_network_leaves_no_link(host: Spawned) -> None:
    network = _network("no-such-bridge")
    before = _counts(host)
    with pytest.raises(Refused) as refused:
        host.start("/bin/true", network=network)
    assert refused.value.failure.step == "network"
    wait_until(lambda: not Path(f"/sys/class/net/{network.interface}").exists(), what="the link is gone")
    _assert_nothing_left(host, before)


def test_link_goes_with_a_program_that_is_not_found(host: Spawned) -> None:
    network = _network("")
    with pytest.raises(Refused) as refused:
        host.start("no-such-program", network=network)
    assert refused.value.failure.code == "command_not_found"
    wait_until(lambda: not Path(f"/sys/class/net/{network.interface}").exists(), what="the link is gone")


def test_interface_is_configured(host: Spawned) -> None:
    network = _network("")
    container = host.start("/bin/sh", "-c", "ip addr; ip route; exec sleep 1000", network=network)
    assert Path(f"/sys/class/net/{network.interface}").exists()
    wait_until(lambda: "default via 10.254.254.1" in container.logged(), what="the default route")
    assert "inet 10.254.254.2/30" in container.logged()
    assert network.mac in container.logged()
    host.end(container)
    wait_until(lambda: not Path(f"/sys/class/net/{network.interface}").exists(), what="the link is gone")


def _counts(host: Spawned) -> tuple[int, int]:
    """Children and descriptors of the spawner."""
    # A first failure makes what is kept for all later ones: the tenant's user namespace.
    with pytest.raises(Refused):
        host.start("no-such-program")
    return _held(host)


def _held(host: Spawned) -> tuple[int, int]:
    pid = host.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return len(children), len(os.listdir(f"/proc/{pid}/fd"))


def _assert_nothing_left(host: Spawned, before: tuple[int, int]) -> None:
    assert not host.held()
    assert not [each for each in host.started if host.group(each).exists()]
    # What an earlier test has hung up on may have been closed in between.
    wait_until(lambda: all(map(le, _held(host), before)), what=lambda: f"as before: {_held(host)}, {before}")


def test_many_starts_leave_no_descriptor(host: Spawned) -> None:
    before = _counts(host)
    for _ in range(10):
        container = host.start("/bin/true")
        host.client.wait_exit(container.key)
        host.client.ask("forget", key=container.key)
    _assert_nothing_left(host, before)


def test_cgroup_goes_with_forget_only(host: Spawned) -> None:
    container = host.start("/bin/true")
    host.client.wait_exit(container.key)
    assert host.group(container).exists()
    host.client.ask("forget", key=container.key)
    assert not host.group(container).exists()


def test_forget_keeps_a_running_container(host: Spawned) -> None:
    container = host.start(*FOREVER)
    host.client.ask("forget", key=container.key)
    assert host.held()[container.key]["exit_code"] is None


def test_shutdown_is_refused_while_a_container_runs(host: Spawned) -> None:
    host.start(*FOREVER)
    with pytest.raises(Refused) as refused:
        host.client.ask("shutdown")
    assert refused.value.failure.errno == 16


def test_a_client_that_died_finds_everything_again(host: Spawned) -> None:
    runs = host.start("/bin/sh", "-c", "echo before; sleep 1000")
    ends = host.start("/bin/sh", "-c", "read line; exit 7", stdin_open=True, attach=True)
    # A client killed with -9 closes its connection and nothing else.
    host.client.close()
    assert ends.attached is not None
    ends.attached.type(b"go\n")
    assert ends.attached.wait_exit() == 7
    host.reconnect()
    held = host.held()
    assert set(held) == {runs.key, ends.key}
    assert held[runs.key]["exit_code"] is None and held[runs.key]["pid"] == runs.pid and is_alive(runs.pid)
    assert held[ends.key]["exit_code"] == 7
    assert held[ends.key]["ended_at"] >= held[ends.key]["started_at"] > 0
    host.reconnect()
    assert host.held()[ends.key]["exit_code"] == 7, "kept until it is forgotten"
    host.client.ask("forget", key=ends.key)
    assert set(host.held()) == {runs.key}


def test_a_killed_client_harms_nobody(host: Spawned) -> None:
    container = host.start(*FOREVER)
    child = os.fork()
    if child == 0:
        try:
            Client(host.run / "spawner.sock").ask("hello")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert host.held()[container.key]["exit_code"] is None


@pytest.mark.parametrize("body", [{}, {"plan": {}}, {"plan": {"key": 1}}, {"plan": []}])
def test_malformed_request_is_answered(host: Spawned, body: dict[str, object]) -> None:
    with pytest.raises(Refused):
        host.client.ask("start", **body)
    assert host.held() == {}


def test_unknown_verb_is_answered(host: Spawned) -> None:
    with pytest.raises(Refused):
        host.client.ask("dance")


def test_spawner_ignores_the_signals_of_a_terminal(host: Spawned) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        host.process.send_signal(number)
    assert host.client.ask("hello")["pid"] == host.process.pid
    assert status_of(host.process.pid)["NSpid"].split()[-1] == str(host.process.pid)


def test_root_can_be_read_only(host: Spawned) -> None:
    ended = host.run_shell(
        "echo x > /root/x; echo y > /tmp/y; echo z > /dev/shm/z && echo shm", read_only=True
    )
    assert ended.out == "shm\n"
    assert ended.err.count("Read-only file system") == 2


def test_user_groups_home_and_folder(host: Spawned) -> None:
    ended = host.run_shell("id; echo $HOME; pwd", user="user", working_directory="/made/for/me")
    assert ended.out.splitlines() == [
        "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)",
        "/home",
        "/made/for/me",
    ]


@pytest.mark.parametrize(
    ("user", "uid", "gid"), [("0", 0, 0), ("1", 1, 0), ("65535", 65535, 0), ("5:7", 5, 7)]
)
def test_numeric_users(host: Spawned, user: str, uid: int, gid: int) -> None:
    assert host.run_shell("id -u; id -g", user=user).out.split() == [str(uid), str(gid)]


def test_large_environment_comes_through(host: Spawned) -> None:
    environment = tuple(f"WORD_{number}={'x' * 100_000}" for number in range(15))
    assert host.run_shell("echo $WORD_14 | wc -c", environment=environment).out == "100001\n"


def test_environment_beyond_what_the_kernel_takes_is_refused(host: Spawned) -> None:
    with pytest.raises(Refused) as refused:
        host.start("/bin/true", environment=(f"WORD={'x' * 200_000}",))
    assert refused.value.failure.step == "program" and refused.value.failure.errno == 7

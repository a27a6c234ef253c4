# SPDX-License-Identifier: Apache-2.0
"""What root in a container, with the default rights, cannot see, change or call.

Out of scope: limits and paths, which have files of their own.  The calls are made by Python inside the container.
"""

import errno
import json
import os
import socket
import uuid
from pathlib import Path

import pytest

from insula.kernel import caps, syscalls
from spawned import UID_BASE, Spawned, status_of, wait_until

KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time")
NOTHING = "0000000000000000"

#: A16, and the calls of A12, A15, A20: refused with an errno, never by SIGSYS.
FORBIDDEN_CALLS = (
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot", "settimeofday",
    "clock_settime", "acct", "quotactl", "quotactl_fd", "syslog", "lookup_dcookie", "iopl", "ioperm", "mount", "umount2",
    "fsopen", "fsmount", "fsconfig", "fspick", "open_tree", "move_mount", "mount_setattr", "pivot_root", "setns",
    "unshare", "open_by_handle_at", "keyctl", "add_key", "request_key", "sethostname", "setdomainname", "kcmp",
    "pidfd_getfd", "move_pages", "migrate_pages", "nfsservctl", "uselib", "ustat", "sysfs", "vhangup",
)  # fmt: skip

CALLS = """
import ctypes, json, sys
library = ctypes.CDLL(None, use_errno=True)
answers = []
for number, first in json.loads({calls!r}):
    ctypes.set_errno(0)
    result = library.syscall(*[ctypes.c_long(each) for each in (number, first, 0, 0, 0, 0, 0)])
    answers.append((result, ctypes.get_errno()))
print(json.dumps(answers))
"""


def _call(host: Spawned, calls: list[tuple[int, int]], **changes: object) -> list[tuple[int, int]]:
    ended = host.run_python(CALLS.format(calls=json.dumps(calls)), **changes)
    assert ended.code == 0, ended
    return [tuple(answer) for answer in json.loads(ended.out)]


def test_namespaces_differ_from_the_hosts_and_a_neighbours(host: Spawned) -> None:
    one, other = host.start("/bin/sleep", "1000"), host.start("/bin/sleep", "1000")
    for kind in KINDS:
        seen = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (one.pid, other.pid, "self")}
        assert len(seen) == 3, kind


def test_ids_are_mapped_into_the_tenants_range(host: Spawned) -> None:
    container = host.start("/bin/sleep", "1000")
    for name in ("uid_map", "gid_map"):
        assert Path(f"/proc/{container.pid}/{name}").read_text().split() == ["0", str(UID_BASE), "65536"]
    assert status_of(container.pid)["Uid"].split() == [str(UID_BASE)] * 4


def test_file_that_root_makes_belongs_to_the_containers_range_on_disk(host: Spawned) -> None:
    container = host.start("/bin/touch", "/root/made")
    host.client.wait_exit(container.key)
    # The layers carry the container's own ids: id-mapped mounts, no chown.
    assert os.stat(f"{container.plan.root.upper}/root/made").st_uid == 0


def test_rights_are_exactly_the_list(host: Spawned) -> None:
    status = status_of(host.start("/bin/sleep", "1000").pid)
    mask = f"{caps.to_mask(caps.DEFAULT):016x}"
    assert [status[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd")] == [mask] * 3
    assert [status[f"Cap{kind}"] for kind in ("Inh", "Amb")] == [NOTHING] * 2
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_user_has_no_rights(host: Spawned) -> None:
    status = status_of(host.start("/bin/sleep", "1000", user="user").pid)
    assert [status[f"Cap{kind}"] for kind in ("Prm", "Eff", "Inh", "Amb")] == [NOTHING] * 4


@pytest.mark.parametrize("changes", [{}, {"stdin_open": True}, {"tty": True}, {"init": "/bin/tini"}])
def test_descriptors_are_the_three(host: Spawned, changes: dict[str, object]) -> None:
    container = host.start("/bin/sh", "-c", "echo ready; exec sleep 1000", **changes)
    wait_until(lambda: "ready" in container.logged(), what="the program runs")
    for pid in host.group(container).pids():
        found = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert sorted(found) == ["0", "1", "2"], found
        assert all(target.startswith(("pipe:", "/dev/null", "/dev/pts/0")) for target in found.values()), (
            found
        )


@pytest.mark.parametrize("number", range(3, 30))
def test_working_directory_by_a_descriptor_is_refused(host: Spawned, number: int) -> None:
    # CVE-2024-21626.
    ended = None
    try:
        ended = host.run_shell("pwd -P; ls /", working_directory=f"/proc/self/fd/{number}")
    except Exception as error:
        assert type(error).__name__ == "Refused"
    if ended is not None:
        assert ended.out.startswith("/") and "busybox" not in ended.err
        assert "boot" not in ended.out.split()


def test_proc_shows_own_processes_only(host: Spawned) -> None:
    host.start("/bin/sleep", "1000")
    text = host.run_to_end("/bin/ls", "/proc").out
    assert [word for word in text.split() if word.isdigit()] == ["1"]


def test_nothing_of_the_host_is_mounted(host: Spawned) -> None:
    text = host.run_to_end("/bin/cat", "/proc/self/mountinfo").out
    for line in text.splitlines():
        assert str(host.state) not in line and str(host.run) not in line, line
    assert "/sys/fs/cgroup" not in text
    assert {line.split()[3] for line in text.splitlines() if line.split()[4] == "/"} == {"/"}


def test_cgroup_paths_show_nothing_of_the_host(host: Spawned) -> None:
    lines = host.run_to_end("/bin/cat", "/proc/self/cgroup").out.splitlines()
    assert not [line for line in lines if host.parent in line], lines


MASKED = ("acpi", "kcore", "keys", "timer_list", "sched_debug", "interrupts")


@pytest.mark.parametrize("name", MASKED)
def test_masked_path_is_empty(host: Spawned, name: str) -> None:
    ended = host.run_shell(
        f"test -e /proc/{name} || exit 0; if test -d /proc/{name}; then ls -A /proc/{name}; else head -c 9 /proc/{name}; fi"
    )
    assert (ended.code, ended.out) == (0, ""), ended


def test_mask_cannot_be_taken_off(host: Spawned) -> None:
    ended = host.run_shell(
        "umount /proc/kcore; umount -l /proc/sys; mount -o remount,rw /proc/sys; rm /proc/kcore; mount --bind /etc /proc"
    )
    assert ended.code != 0
    assert ended.err.count("not permitted") + ended.err.count("denied") >= 4, ended.err


SYSCTLS = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/panic", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname",
)  # fmt: skip


@pytest.mark.parametrize("path", SYSCTLS)
def test_sysctl_cannot_be_written(host: Spawned, path: str) -> None:
    before = _host_value(path)
    ended = host.run_shell(f"test -e {path} || exit 1; echo 1 > {path}")
    assert ended.code != 0 and ended.out == ""
    assert (
        "Read-only" in ended.err
        or "denied" in ended.err
        or "not permitted" in ended.err
        or not Path(path).exists()
    )
    assert _host_value(path) == before


def _host_value(path: str) -> str:
    is_readable = path.startswith("/proc/sys/") and Path(path).exists()
    return Path(path).read_text() if is_readable else ""


@pytest.mark.parametrize(
    "kind", ["proc", "sysfs", "tmpfs", "overlay", "cgroup", "cgroup2", "debugfs", "bpf", "devpts"]
)
def test_mount_is_refused(host: Spawned, kind: str) -> None:
    ended = host.run_shell(f"mount -t {kind} none /tmp")
    assert ended.code != 0
    assert "not permitted" in ended.err or "denied" in ended.err, ended.err


def test_namespaces_cannot_be_made(host: Spawned) -> None:
    for option in ("-U", "-m", "-n", "-p", "-i", "-u"):
        ended = host.run_to_end("/bin/unshare", option, "/bin/true")
        assert ended.code != 0 and "not permitted" in ended.err, (option, ended)


@pytest.mark.parametrize("words", ["b 8 0", "b 259 0", "c 1 1", "c 10 200"])
def test_device_nodes_cannot_be_made(host: Spawned, words: str) -> None:
    ended = host.run_shell(f"mknod /root/node {words} && cat /root/node")
    assert ended.code != 0 and "not permitted" in ended.err, ended


def test_devices_are_the_few(host: Spawned) -> None:
    text = host.run_shell("ls /dev; head -c 4 /dev/zero | wc -c; echo x > /dev/null; echo y > /dev/full").out
    assert text.split() == [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero", "4",
    ]  # fmt: skip


def test_dangerous_calls_are_refused_with_an_errno(host: Spawned) -> None:
    numbers = syscalls.numbers(os.uname().machine)
    names = [name for name in FORBIDDEN_CALLS if name in numbers]
    answers = _call(host, [(numbers[name], 0x10000000 if name == "unshare" else 0) for name in names])
    wrong = {
        name: answer
        for name, answer in zip(names, answers, strict=True)
        if answer[0] != -1 or answer[1] not in (errno.EPERM, errno.ENOSYS)
    }
    assert not wrong


def test_unknown_calls_do_not_exist(host: Spawned) -> None:
    answers = _call(host, [(number, 0) for number in range(500, 1001)])
    assert set(answers) == {(-1, errno.ENOSYS)}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is a table of x86_64")
def test_x32_calls_do_not_exist(host: Spawned) -> None:
    assert set(_call(host, [(0x40000000 + number, 0) for number in range(400)])) == {(-1, errno.ENOSYS)}


def test_personality_cannot_weaken_randomization(host: Spawned) -> None:
    number = syscalls.numbers(os.uname().machine)["personality"]
    assert _call(host, [(number, 0x0040000), (number, 0xFFFFFFFF)]) == [(-1, errno.EPERM), (0, 0)]


SOCKETS = """
import json, socket
answers = []
for family, kind in ((40, 1), (38, 5), (15, 3), (16, 3)):
    try:
        socket.socket(family, kind, 9 if family == 16 else 2 if family == 15 else 0).close()
        answers.append(0)
    except OSError as error:
        answers.append(error.errno)
print(json.dumps(answers))
"""


def test_socket_families_of_the_host_are_refused(host: Spawned) -> None:
    vsock, algorithms, key, _audit = json.loads(host.run_python(SOCKETS).out)
    assert vsock == algorithms == errno.EAFNOSUPPORT
    assert key != 0


CONNECT = """
import socket
made = socket.socket(socket.AF_UNIX)
try:
    made.connect({name!r})
    print("reached")
except OSError as error:
    print(error.errno)
"""


def test_abstract_sockets_of_the_host_are_not_reached(host: Spawned) -> None:
    name = f"\0insula-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(name)
        assert host.run_python(CONNECT.format(name=name)).out.strip() == str(errno.ECONNREFUSED)


def test_setuid_files_give_nothing(host: Spawned) -> None:
    for user, uid in (("user", "1000"), ("root", "0")):
        ended = host.run_shell("/bin/setuid-id -u", user=user, python=True)
        assert ended.out.strip() == uid, ended


def test_files_of_the_host_cannot_be_reached_through_the_parent(host: Spawned) -> None:
    ended = host.run_shell("cd /; ls ../../../..; ls /proc/1/root/; ls /proc/1/cwd/..")
    assert "boot" not in ended.out.split() and "busybox" not in ended.out.split()
    assert set(ended.out.split("\n\n")[0].split()) == set(os.listdir(host.root)), ended


def test_hostname_is_its_own(host: Spawned) -> None:
    container = host.start("/bin/sh", "-c", "hostname; cat /etc/hostname; hostname other")
    host.client.wait_exit(container.key)
    assert container.logged().split() == [container.key, container.key]
    assert "not permitted" in container.logged(2)


def test_kernel_log_and_addresses_are_hidden(host: Spawned) -> None:
    ended = host.run_shell("dmesg; head -n 5 /proc/kallsyms | cut -d' ' -f1")
    assert "not permitted" in ended.err
    assert not set(ended.out.split()) - {"0000000000000000"}, ended.out


def test_other_processes_cannot_be_signalled(host: Spawned) -> None:
    neighbour = host.start("/bin/sleep", "1000")
    ended = host.run_shell(
        f"kill -9 {neighbour.pid}; kill -9 {host.process.pid}; kill -9 -1; echo {os.getppid()}"
    )
    assert ended.err.count("No such process") >= 2
    assert host.held()[neighbour.key]["exit_code"] is None

# SPDX-License-Identifier: Apache-2.0
"""A5, A6, A24, A29: what is tried at the moment when somebody enters: working directories, the joiner, users, terminals."""

import fcntl
import json
import os
import pty
import secrets
import struct
import termios

import pytest

from hosted import Host, Person, wait_until
from searched import found_below
from security.trees import fingerprint, found_on_host
from waiting import DEADLINE_S

CODES = {126, 127, 125, 1}


def run_in_folder(person: Person, folder: str) -> tuple[int, str]:
    """Start a container in a working directory; returns the answer's status and what `pwd` said."""
    spec = {
        "image": "box",
        "name": "c",
        "command": ["sh", "-c", "pwd -P; ls -d $PWD/boot"],
        "working_directory": folder,
    }
    status, made = person.ask("POST", "/v1/containers", body=json.dumps(spec).encode())
    if status != 201:
        return status, ""
    status, _ = person.ask("POST", "/v1/containers/c/start")
    said = ""
    if status == 204:
        person.ask("GET", "/v1/containers/c/wait")
        said = person("logs", "c")
    assert person.ask("DELETE", f"/v1/containers/{made['id']}?force=1")[0] == 204
    return status, said


@pytest.mark.parametrize("first", range(3, 51, 8))
def test_a5_descriptor_as_working_directory(host: Host, alice: Person, first: int) -> None:
    name = f"insula-{secrets.token_hex(6)}"
    before = fingerprint()
    for number in range(first, first + 8):
        for tail in ("", "/..", f"/{name}"):
            status, said = run_in_folder(alice, f"/proc/self/fd/{number}{tail}")
            assert status != 204 or (said.startswith("/") and "boot" not in said.partition("\n")[2]), (
                number,
                said,
            )
    assert fingerprint() == before
    assert not found_on_host(name)
    assert not found_below(host.folder, f"**/{name}")


@pytest.mark.parametrize(
    "folder",
    ["/proc/self/root", "/proc/1/root/../..", "/proc/self/cwd", "/proc/self/cwd/../..", "/proc/thread-self/fd/3", "/proc/self/task/1/cwd", "/dev/fd/5", "/proc/self/ns"],
)  # fmt: skip
def test_a5_working_directory_through_proc(alice: Person, folder: str) -> None:
    status, said = run_in_folder(alice, folder)
    assert status in (204, 400, 422, 500)
    assert status != 500, "a working directory is not a defect"
    if status == 204:
        alice("run", "-d", "--name", "own", "box", "sleep", "1000")
        assert said.startswith("/") and "boot" not in said.partition("\n")[2]


def test_a5_working_directory_that_was_removed_or_is_a_link_to_the_root(alice: Person) -> None:
    alice(
        "run", "-d", "--name", "c", "-w", "/gone", "box", "sh", "-c", "rmdir /gone; ln -s / /gone; sleep 1000"
    )
    wait_until(lambda: alice.give("exec", "c", "test", "-h", "/gone").code == 0, what="it is a link")
    for folder in ("/gone", "/gone/../..", "/proc/1/cwd", "/proc/1/cwd/.."):
        done = alice.give("exec", "-w", folder, "c", "sh", "-c", "pwd -P; ls -d boot")
        assert done.code in CODES and "boot" not in done.out.split(), done
        assert done.out == "" or done.out.startswith("/"), done


SPY = """
import os, signal, sys, time
own = os.readlink("/proc/self/exe")
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print("ready", flush=True)
tries = 0
while not stop:
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) in (1, os.getpid()):
            continue
        for name, flags in (("exe", os.O_RDONLY), ("exe", os.O_WRONLY), ("mem", os.O_RDWR), ("cwd", os.O_PATH), ("fd", os.O_RDONLY), ("maps", os.O_RDONLY)):
            tries += 1
            try:
                descriptor = os.open(f"/proc/{pid}/{name}", flags)
            except OSError:
                continue
            try:
                target = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                target = own
            if not target.startswith(("/bin/", "/usr/bin/")) or "/work" in target or "/root" in target:
                print("opened", name, flags, target, flush=True)
            os.close(descriptor)
print("tries", tries, flush=True)
"""


@pytest.mark.parametrize("user", ["0", "1000:1000"])
def test_a6_who_enters_is_not_looked_into(alice: Person, user: str) -> None:
    alice("run", "-d", "--name", "c", "-u", user, "host", "python3", "-ISc", SPY)
    wait_until(lambda: "ready" in alice("logs", "c"), what="the spy looks")
    body = json.dumps({"command": ["/bin/true"], "detach": True, "user": user}).encode()
    for _ in range(100):
        status, answer = alice.ask("POST", "/v1/containers/c/exec", body=body)
        assert status in (200, 201, 204), answer
    alice("stop", "-t", "30", "c")
    said = alice("logs", "c").splitlines()
    assert said[-1].startswith("tries"), said[-3:]
    assert not [line for line in said if line.startswith("opened")]


@pytest.mark.parametrize("way", ["run", "exec"])
@pytest.mark.parametrize("trick", ["link", "script", "script-by-link", "loader"])
def test_a6_nothing_of_ours_is_executed_inside(alice: Person, way: str, trick: str) -> None:
    made = {
        "link": "ln -sf /proc/self/exe /data/trick",
        "script": "printf '#!/proc/self/exe\\n' > /data/trick; chmod 755 /data/trick",
        "script-by-link": "ln -sf /proc/self/exe /data/hop; printf '#!/data/hop\\n' > /data/trick; chmod 755 /data/trick",
        "loader": "sed 's,/lib64/ld-linux-x86-64.so.2,/proc/self/exe\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00,' /usr/bin/true > /data/trick; chmod 755 /data/trick",
    }[trick]  # fmt: skip
    alice("run", "--rm", "-v", "data:/data", "host", "sh", "-c", made)
    words = ("-c", "import os; print('ours', os.readlink('/proc/self/exe'))")
    if way == "run":
        done = alice.give("run", "--rm", "-v", "data:/data", "host", "/data/trick", *words)
    else:
        alice("run", "-d", "--name", "c", "-v", "data:/data", "host", "sleep", "1000")
        done = alice.give("exec", "c", "/data/trick", *words)
    assert done.code in CODES, done
    assert "ours" not in done.out


@pytest.mark.parametrize(
    "user", ["65536", "4294967295", "4294967296", "2147483648", "-1", "0x0", "1e3", "٣", "nobody-here", "0:65536", "0:-1", "0:none-such", " 1", "1 "],
)  # fmt: skip
def test_a29_exec_as_a_user_that_cannot_be(alice: Person, user: str) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    body = json.dumps({"command": ["id"], "detach": True, "user": user}).encode()
    status, answer = alice.ask("POST", "/v1/containers/c/exec", body=body)
    assert 400 <= status < 500, answer
    assert "cannot" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("user", "said"),
    [("0", "0 0"), ("1", "1 0"), ("65535", "65535 0"), ("guest", "1000 1000"), ("7:8", "7 8")],
)
def test_a29_exec_as_a_user_that_can(alice: Person, user: str, said: str) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    assert alice("exec", "-u", user, "c", "sh", "-c", "echo $(id -u) $(id -g)") == said
    groups = alice("exec", "-u", user, "c", "id", "-G").split()
    assert groups == [said.split()[1]], groups


def test_a29_exec_when_it_is_paused_ended_or_anothers(alice: Person, bob: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    alice("pause", "c")
    assert "paused" in alice.fails("exec", "c", "true", code=125)
    alice("unpause", "c")
    identifier = alice.look("c")["id"]
    assert "cannot find" in bob.fails("exec", identifier, "true", code=125)
    alice("kill", "c")
    alice.wait_for("c", status="exited")
    assert "not running" in alice.fails("exec", "c", "true", code=125)


def test_a29_exec_while_it_is_stopped(alice: Person) -> None:
    """The program does not heed the first signal: for this long the container is on its way out."""
    script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done"
    alice("run", "-d", "--name", "c", "box", "sh", "-c", script)
    wait_until(lambda: "ready" in alice("logs", "c"), what="it heeds signals")
    with alice.begin("stop", "-t", "3", "c") as stopping:
        wait_until(lambda: "asked" in alice("logs", "c"), what="it was asked to end")
        seen = [alice.give("exec", "c", "true")]
        while stopping.poll() is None:
            seen.append(alice.give("exec", "c", "true"))
        assert stopping.returncode == 0
    for done in seen:  # it runs until it is killed; in no moment anything half entered
        assert done.code in (0, 125, 128 + 9), done
        assert done.code != 125 or "cannot" in done.err or "is not running" in done.err, done
    alice.wait_for("c", status="exited")
    assert "not running" in alice.fails("exec", "c", "true", code=125)


INJECT = """
import fcntl, os, termios
for letter in b"touch /tmp/insula-injected\\n":
    try:
        fcntl.ioctl(0, termios.TIOCSTI, bytes([letter]))
    except OSError as error:
        print("TIOCSTI", error.errno)
        break
for code in (2, 3, 10, 11):
    try:
        fcntl.ioctl(0, 0x541C, bytes([code]) * 64)
        print("TIOCLINUX came through")
    except OSError:
        pass
print("\\x1b]0;title\\x07\\x1b[21t\\x1b[6n\\x1b[c", flush=True)
"""


@pytest.mark.parametrize("way", ["run", "exec"])
def test_a24_nothing_is_typed_for_the_caller(alice: Person, way: str) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        words = ("run", "--rm", "-it", "host")
        if way == "exec":
            alice("run", "-d", "--name", "c", "host", "sleep", "1000")
            words = ("exec", "-it", "c")
        with alice.begin(
            *words, "python3", "-ISc", INJECT, stdin=slave, stdout=slave, stderr=slave
        ) as process:
            assert process.wait(timeout=DEADLINE_S) == 0
        (waiting,) = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, bytes(4)))
        said = os.read(master, 65536).decode()
        assert waiting == 0, "something stands in the caller's input"
        assert "TIOCLINUX came through" not in said
        assert not os.path.exists("/tmp/insula-injected")
    finally:
        os.close(master)
        os.close(slave)


NASTY = "\x1b]0;owned\x07\x1b[2J\u202e\u2028\r"


def test_a24_tables_and_errors_show_escape_sequences_inert(alice: Person, root: Person) -> None:
    """What a tenant writes into words that others see does not steer an administrator's terminal."""
    spec = {
        "image": "box",
        "name": "c",
        "command": ["sh", "-c", "sleep 1000", NASTY],
        "labels": {"x": NASTY},
        "environment": [f"A={NASTY}"],
    }
    assert alice.ask("POST", "/v1/containers", body=json.dumps(spec).encode())[0] == 201
    alice("start", "c")
    seen = root("ps", "--all-tenants") + root("ps", "-a", "--all-tenants", "--no-trunc") + alice("top", "c")
    seen += (
        alice.give("exec", "c", f"/no{NASTY}such").err + alice.give("run", "--rm", f"no{NASTY}", "true").err
    )
    assert "\x1b" not in seen and "\x07" not in seen and "\u202e" not in seen and "\u2028" not in seen, repr(
        seen
    )

# SPDX-License-Identifier: Apache-2.0
"""What a container is held to: folders, addresses, capabilities; what is refused is told; and all of it survives."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from drifts import events
from hosted import DEADLINE_S, Host, wait_until
from insula.monitor.drift import MAX_ANNOUNCED

#: Executes what it is sent, a line each, and answers with the error's name or `done`.
PROGRAM = """
import errno, os, socket
server = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = server.accept()
    for line in connection.makefile("r"):
        try:
            exec(line)
            answer = "done"
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error)) if error.errno else str(error)
        connection.sendall(answer.encode() + b"\\n")
"""
PORT = 7000


class Conversation:
    """A connection to the program."""

    def __init__(self, host: Host, address: str) -> None:
        self._host, self._address = host, address
        self._socket: socket.socket | None = None
        wait_until(self._is_connected, what="the program listens")

    def _is_connected(self) -> bool:
        try:
            self._socket = self._host.connect(self._address, PORT)
        except OSError:
            return False
        self._socket.settimeout(DEADLINE_S)
        return True

    def __call__(self, *lines: str) -> list[str]:
        assert self._socket is not None
        self._socket.sendall("".join(f"{line}\n" for line in lines).encode())
        with self._socket.makefile("r") as file:
            return [file.readline().strip() for _ in lines]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


@contextmanager
def talking(host: Host, name: str) -> Iterator[Conversation]:
    made = Conversation(host, host.root.look(name)["attachment"]["address"])
    try:
        yield made
    finally:
        made.close()


def begin(host: Host, name: str = "c", *, words: tuple[str, ...] = ()) -> None:
    host.root("create", "--name", name, *words, "host", "python3", "-Suc", PROGRAM)


def record(host: Host, *lines: str, name: str = "c", profile: str = "p") -> None:
    host.root.give("profile", "rm", profile)  # of a test that failed
    host.root("profile", "record", name)
    host.root("start", name)
    with talking(host, name) as say:
        assert say(*lines) == ["done"] * len(lines)
    host.root("profile", "stop", name, profile)
    host.root("stop", "-t", "1", name)


LOAD = (
    'os.makedirs("/var/lib/app/data", exist_ok=True); open("/var/lib/app/data/x", "w").close()',
    'os.chdir("/var/lib/app"); open("relative", "w").close(); os.rename("relative", "data/y"); os.chdir("/")',
    'socket.create_connection(("127.0.0.1", 7000), timeout=30).close()',
    's = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"?", ("192.0.2.9", 53)); s.close()',
)


def test_folders_are_read_only_but_for_those_that_were_written(host: Host) -> None:
    begin(host)
    record(host, *LOAD)
    shown = host.root.json("profile", "show", "--format", "json", "p")
    assert "/var/lib/app/data" in shown["written"]
    assert shown["outgoing"] == {"127.0.0.1:7000/tcp": 1, "192.0.2.9:53/udp": 1}
    assert host.root("profile", "apply", "p", "c") == "c"
    host.root("start", "c")
    with events(host.root) as told, talking(host, "c") as say:
        assert say(*LOAD) == ["done"] * len(LOAD)
        assert told.drifts() == []
        assert host.root("profile", "drift", "c") == ""
        assert say('open("/etc/planted", "w")', 'open("/usr/bin/planted", "w")') == ["EROFS", "EROFS"]
        wait_until(lambda: len(told.drifts()) == 2, what=lambda: f"told: {told.drifts()}")
        assert "/etc/planted (new folder, refused)" in told.drifts()[0]
    drifts = host.root.json("profile", "drift", "--format", "json", "c")
    assert (drifts["not_remembered"], drifts["lost_events"]) == (0, 0)
    assert {(each["part"], each["thing"], each["is_refused"]) for each in drifts["drifts"]} == {
        ("written", "/etc", True),
        ("written", "/usr/bin", True),
    }
    status, _ = host.root.ask("GET", "/v1/containers/c/drift")
    assert status == 200
    host.root("stop", "-t", "1", "c")
    host.root("profile", "release", "c")
    host.root("start", "c")
    with talking(host, "c") as say:
        assert say('open("/etc/planted", "w")') == ["done"]
    host.root("profile", "rm", "p")


def test_another_form_of_a_call_that_was_used_is_neither_refused_nor_told(host: Host) -> None:
    begin(host)
    opened = 'f = os.open("/var/lib/f", os.O_CREAT | os.O_RDWR); {}; os.close(f)'
    record(host, opened.format('os.pwritev(f, [b"in", b"two"], 0)'))
    shown = host.root.json("profile", "show", "--format", "json", "p")
    assert "pwrite64" not in shown["calls"], shown
    host.root("profile", "apply", "p", "c")
    host.root("start", "c")
    with events(host.root) as told, talking(host, "c") as say:
        assert say(opened.format('os.pwrite(f, b"in one", 0)')) == ["done"]
        assert say("os.mkfifo('/var/lib/pipe')") == ["EPERM"]
        wait_until(lambda: told.drifts() != [], what="what is none is told")
        assert all("mknod" in each for each in told.drifts()), told.drifts()
    host.root("profile", "rm", "p")


def test_it_is_held_after_a_checkpoint_too(host: Host) -> None:
    begin(host)
    record(host, *LOAD)
    host.root("profile", "apply", "p", "c")
    host.root("start", "c")
    with talking(host, "c") as say:
        assert say(*LOAD) == ["done"] * len(LOAD)
    # What is wished for the next start does not touch what runs, nor its checkpoint.
    assert "from its next start on" in host.root("profile", "release", "c")
    host.root("checkpoint", "create", "c")
    host.root("restore", "c")
    with events(host.root) as told, talking(host, "c") as say:
        assert say(*LOAD) == ["done"] * len(LOAD)
        assert say('open("/etc/planted", "w")') == ["EROFS"]
        assert say('socket.create_connection(("192.0.2.9", 80), timeout=30)') == ["ECONNREFUSED"]
        wait_until(lambda: len(told.drifts()) == 2, what=lambda: f"told: {told.drifts()}")
        if host.root.look("c")["attachment"].get("address6"):
            assert say('socket.create_connection(("2001:db8::9", 80), timeout=30)') == ["ECONNREFUSED"]
    host.root("stop", "-t", "1", "c")
    host.root("start", "c")
    with talking(host, "c") as say:
        assert say('open("/etc/planted", "w")') == ["done"]
    host.root("profile", "rm", "p")


def test_who_is_not_in_the_profile_cannot_be_reached(host: Host) -> None:
    begin(host, "other")
    begin(host)
    host.root("start", "other")
    other = host.root.look("other")["attachment"]["address"]
    local = 'socket.create_connection(("127.0.0.1", 7000), timeout=30).close()'
    reach = f'socket.create_connection(("{other}", {PORT}), timeout={DEADLINE_S}).close()'
    in_vain = f'socket.create_connection(("{other}", {PORT}), timeout=2).close()'
    with talking(host, "other"):
        record(host, local)
        record(host, reach, profile="q")
        host.root("profile", "apply", "p", "c")
        host.root("start", "c")
        with talking(host, "c") as say:
            assert say(local) == ["done"]
            # It stays in the network: dropped there, unless this host has bridged frames pass its IP rules (br_netfilter).
            assert say(in_vain)[0] in ("timed out", "ECONNREFUSED")
            assert say('socket.create_connection(("192.0.2.9", 80), timeout=30)') == ["ECONNREFUSED"]
        host.root("stop", "-t", "1", "c")
        host.root("profile", "apply", "q", "c")
        host.root("start", "c")
        with talking(host, "c") as say:
            assert say(reach) == ["done"]
    # insulad makes all rules anew when it starts.
    host.kill()
    host.start()
    with talking(host, "c") as say:
        assert say(reach) == ["done"]
        assert say('socket.create_connection(("192.0.2.9", 80), timeout=30)') == ["ECONNREFUSED"]
    host.root("profile", "rm", "p", "q")


def test_logging_tells_and_refuses_nothing(host: Host) -> None:
    begin(host)
    record(host)
    host.root("profile", "apply", "--enforce", "log", "p", "c")
    host.root("start", "c")
    with events(host.root) as told, talking(host, "c") as say:
        assert say('open("/etc/planted", "w")', "os.getsid(0)", LOAD[3]) == ["done"] * 3
        wait_until(lambda: len(told.drifts()) >= 3, what=lambda: f"told: {told.drifts()}")
        assert all("not refused" in each for each in told.drifts())
        assert say(*["os.getsid(0)"] * 4) == ["done"] * 4
    lines = host.root("profile", "drift", "c").splitlines()
    assert any(line.split()[:2] == ["5", "done"] and "getsid" in line for line in lines), lines
    host.root("profile", "rm", "p")


def test_a_flood_of_new_folders_hides_nothing_from_rules(host: Host) -> None:
    rules = host.folder / "rules.d" / "drift.toml"
    rules.parent.mkdir(exist_ok=True)
    rules.write_text('[[rule]]\nname = "evil"\nkinds = ["drift"]\npaths = ["/etc/evil*"]\n')
    host.root("rule", "reload")
    begin(host)
    record(host)
    host.root("profile", "apply", "--enforce", "log", "p", "c")
    host.root("start", "c")
    with events(host.root) as told, talking(host, "c") as say:
        assert say(*(f'os.makedirs("/opt/{number}/x")' for number in range(40))) == ["done"] * 40
        assert say('open("/etc/evil", "w")') == ["done"]
        wait_until(
            lambda: "alarm" in [each["event"] for each in list(told.seen)], what="the rule has heard of it"
        )
        assert len(told.drifts()) == MAX_ANNOUNCED
    rules.unlink()
    host.root("rule", "reload")
    host.root("profile", "rm", "p")


def test_programs_that_were_never_started_cannot_be(host: Host) -> None:
    begin(host)
    start = 'import subprocess; subprocess.run(["/usr/bin/true"], check=True)'
    script = (
        'open("/var/tmp/script", "w").write("#!/usr/bin/env true\\n"); os.chmod("/var/tmp/script", 0o755)',
        'subprocess.run(["/var/tmp/script"], check=True)',
    )
    load = (start, *script, LOAD[0], 'import shutil; shutil.copyfile("/usr/bin/id", "/var/lib/app/data/x")')
    record(host, *load)
    shown = host.root.json("profile", "show", "--format", "json", "p")
    assert {"/usr/bin/true", "/var/tmp/script", "/usr/bin/env"} <= shown["programs"].keys()
    host.root("profile", "apply", "p", "c")
    host.root("start", "c")
    loader = "/lib64/ld-linux-x86-64.so.2"
    with events(host.root) as told, talking(host, "c") as say:
        assert say(*load) == ["done"] * 5
        assert told.drifts() == []
        planted = (
            'subprocess.run(["/bin/sh", "-c", "id"])',
            'import shutil; shutil.copyfile("/usr/bin/id", "/var/lib/app/data/id"); os.chmod("/var/lib/app/data/id", 0o755)',
            'subprocess.run(["/var/lib/app/data/id"])',
        )
        assert say(*planted) == ["EACCES", "done", "EACCES"]
        wait_until(lambda: len(told.drifts()) >= 2, what=lambda: f"told: {told.drifts()}")
        assert "/bin/sh (new program, refused)" in told.drifts()[0]
        # The loader maps a program as the kernel would.
        assert say(
            f'answer = subprocess.run(["{loader}", "/bin/sh"]).returncode; raise OSError(answer, "")'
        ) != ["done"]
    assert "permission denied" in host.root.fails("exec", "c", "sh", code=126)
    host.root("profile", "rm", "p")

# SPDX-License-Identifier: Apache-2.0
"""`insula profile`: recorded under load, enforced for the same load, and what it refuses then."""

import json
import tempfile
from pathlib import Path

import pytest

from hosted import Host

#: Does all that is asked of it in a line: what a server does.
SERVER = """
import os, socket, sys
print("ready", flush=True)
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
LOAD = (
    'open("/tmp/x", "w").close(); os.unlink("/tmp/x")',
    's = socket.socket(); s.bind(("127.0.0.1", 8080)); s.listen(); c = socket.create_connection(("127.0.0.1", 8080))',
    "os.getpgid(0)",
)


def converse(host: Host, name: str, *lines: str, command: str = "start") -> list[str]:
    """Start a server with its pipes at hand and return its answers; it ends with its input."""
    done = host.root.give(command, "-ai", name, data="".join(f"{line}\n" for line in lines).encode())
    assert done.err == "", done
    return done.out.split("\n")[1:-1]


@pytest.fixture
def server(host: Host) -> str:
    host.root("create", "-i", "--name", "server", "--network", "none", "host", "python3", "-Suc", SERVER)
    return "server"


def test_what_was_recorded_can_be_done_again_and_nothing_else(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    assert converse(host, server, *LOAD) == ["done"] * len(LOAD)
    host.root("profile", "stop", server, "usual")
    (shown,) = host.root.json("profile", "ls", "--format", "json")
    assert shown["is_from_birth"]
    assert {"unlink", "bind", "listen", "connect", "getpgid"} <= shown["calls"].keys()
    assert shown["listening"] == {"127.0.0.1:8080/tcp": 1}
    assert "/tmp" in shown["written"]

    host.root("profile", "apply", "usual", server)
    assert converse(host, server, *LOAD) == ["done"] * len(LOAD)
    answers = converse(host, server, 'os.mkdir("/tmp/y")', "os.getsid(0)", "os.mkfifo('/tmp/f')")
    assert answers == ["Operation not permitted"] * 3

    host.root("profile", "release", server)
    assert converse(host, server, 'os.mkdir("/tmp/y")') == ["done"]
    host.root("profile", "rm", "usual")


def test_what_makes_an_exec_is_not_the_containers(host: Host) -> None:
    """Its namespaces and ids are given to it before it has its seccomp filter."""
    host.root("run", "-d", "--name", "looked-at", "--network", "none", "host", "sleep", "1000")
    host.root("profile", "record", "looked-at")
    host.root("exec", "looked-at", "true")
    host.root("profile", "stop", "looked-at", "usual")
    (shown,) = host.root.json("profile", "ls", "--format", "json")
    host.root("profile", "rm", "usual")
    host.root("rm", "-f", "looked-at")
    assert "execve" in shown["calls"]
    assert not {"setns", "setresuid", "capset", "keyctl"} & shown["calls"].keys()
    assert shown["capabilities"] == {}
    assert shown["written"] == {}


def test_logging_lets_it_happen(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    converse(host, server)
    host.root("profile", "stop", server, "idle")
    host.root("profile", "apply", "--enforce", "log", "idle", server)
    assert converse(host, server, 'os.mkdir("/tmp/z")') == ["done"]
    host.root("profile", "rm", "idle")


def test_a_planted_shell_is_denied(host: Host, server: str) -> None:
    host.root("profile", "record", server)
    converse(host, server, *LOAD)
    host.root("profile", "stop", server, "usual")
    host.root("profile", "apply", "usual", server)
    # Python starts programs by vfork(2), which serving does not need.
    answers = converse(host, server, 'import subprocess; subprocess.run(["/bin/sh", "-c", "id"])')
    assert answers == ["Operation not permitted"]
    host.root("profile", "rm", "usual")


def test_a_profile_is_carried_and_compared(host: Host, server: str, tmp_path: Path) -> None:
    host.root("profile", "record", server)
    converse(host, server)
    host.root("profile", "stop", server, "small")
    exported = host.root("profile", "export", "small")
    other = {**json.loads(exported), "name": "large"}
    other["calls"] = {**other["calls"], "ptrace": 1}
    with tempfile.NamedTemporaryFile("w", dir="/var/tmp", suffix=".json") as file:
        json.dump(other, file)
        file.flush()
        assert host.root("profile", "import", file.name) == "large"
    done = host.root.give("profile", "diff", "small", "large")
    assert (done.code, done.out) == (1, "+ system calls: ptrace\n")
    oci = host.root.json("profile", "export", "--seccomp", "large")
    assert oci["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"ptrace", "exit_group"} <= set(oci["syscalls"][0]["names"])
    host.root("profile", "rm", "small", "large")


def test_another_tenants_profiles_are_not_there(host: Host) -> None:
    host.alice("run", "-d", "--name", "hers", "box", "sleep", "1000")
    host.alice("profile", "record", "hers")
    host.alice("profile", "stop", "hers")
    assert host.bob.json("profile", "ls", "--format", "json") == []
    assert "cannot find profile `hers`" in host.bob.fails("profile", "export", "hers")
    assert "cannot find container `hers`" in host.bob.fails("profile", "record", "hers")
    host.alice("profile", "rm", "hers")


def test_wrong_wishes_are_explained(host: Host, server: str) -> None:
    assert "is not being recorded" in host.root.fails("profile", "stop", server)
    host.root("profile", "record", server)
    assert "it is being recorded" in host.root.fails("profile", "record", server)
    assert "its recording begins when it starts" in host.root.fails("profile", "show", server)
    assert "cannot find profile `none`" in host.root.fails("profile", "apply", "none", server)
    for words in (("show", "none"), ("diff", "none", "none")):
        said = host.root.fails("profile", *words)
        assert "cannot find profile `none`" in said
        assert "container" not in said
    assert "cannot enforce by `x`" in host.root.fails(
        "profile", "apply", "--enforce", "x", "a", server, code=125
    )

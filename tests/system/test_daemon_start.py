# SPDX-License-Identifier: Apache-2.0
"""insulad as a process: ready, lock, socket, who calls, graceful end.  Root: callers of two uids."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.tenant.idmap import FIRST_UID
from waiting import DEADLINE_S


def begin(folder: Path, *, state: str = "state") -> tuple[subprocess.Popen[bytes], bytes]:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "insula.daemon.main", "--state", f"{folder}/{state}", "--run", f"{folder}/run",
         "--name", "alpha", "--ready-fd", str(writing)],
        pass_fds=[writing], stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    with open(reading, "rb") as ready:
        return process, ready.read()


def take_down(folder: Path) -> None:
    """End what a daemon leaves running on purpose: its spawner."""
    words = ["--state", f"{folder}/state", "--run", f"{folder}/run", "--name", "alpha", "--teardown"]
    subprocess.run([sys.executable, "-m", "insula.daemon.main", *words], check=True, timeout=DEADLINE_S)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("daemon")
    for parent in (path, path.parent, path.parent.parent):
        parent.chmod(0o755)
    process, ready = begin(path)
    assert ready == b"ready\n"
    yield path
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, log
    assert list((path / "run").glob("api.sock")) == []
    take_down(path)


def ask(
    path: str, *, uid: int, method: str = "GET", target: str = "/v1/host"
) -> tuple[int, dict[str, object]]:
    """Ask as another user: only a process can be one, so a child asks."""
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(f'{sys.argv[3]} {sys.argv[4]} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'.encode())\n"
        "sys.stdout.buffer.write(b''.join(iter(lambda: s.recv(65536), b'')))\n"
    )
    words = [sys.executable, "-SIc", program, path, str(uid), method, target]
    answer = subprocess.run(words, capture_output=True, check=True, timeout=DEADLINE_S).stdout
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_two_users_are_two_tenants_and_programs_in_containers_are_nobody(folder: Path) -> None:
    socket_path = folder / "run/api.sock"
    assert stat.S_IMODE(socket_path.stat().st_mode) & 0o007 == 0
    os.chmod(socket_path, 0o666)
    assert ask(str(socket_path), uid=0)[0] == 200
    status, facts = ask(str(socket_path), uid=4711)
    assert (status, facts["name"]) == (200, "alpha")
    for target in ("/v1/hosts", "/v1/containers?tenant=root", "/v1/containers?tenant=*"):
        status, body = ask(str(socket_path), uid=4711, target=target)
        assert status == (403 if target == "/v1/hosts" else 404), body
    assert ask(str(socket_path), uid=0, target="/v1/containers?tenant=*")[0] == 200
    status, body = ask(str(socket_path), uid=FIRST_UID + 33)
    assert (status, body["error"]) == (
        403,
        {
            "code": "denied",
            "message": f"cannot serve uid `{FIRST_UID + 33}`: it belongs to a container",
            "hint": "",
        },
    )
    audit = [json.loads(line) for line in (folder / "state/audit.log").read_text().splitlines()]
    assert {"uid4711", ""} <= {line["who"] for line in audit}


def test_a_second_daemon_on_the_same_state_is_refused(folder: Path) -> None:
    process, ready = begin(folder)
    _, log = process.communicate(timeout=DEADLINE_S)
    assert (ready, process.returncode) == (b"", 125)
    assert b"another insulad does" in log
    assert ask(str(folder / "run/api.sock"), uid=0)[0] == 200


def test_a_second_daemon_in_the_same_run_folder_is_refused(folder: Path) -> None:
    # It would take the sockets over, and end the containers that it does not know.
    process, ready = begin(folder, state="other")
    _, log = process.communicate(timeout=DEADLINE_S)
    assert (ready, process.returncode) == (b"", 125)
    assert b"cannot use run folder" in log and b"give this one its own --run" in log
    assert ask(str(folder / "run/api.sock"), uid=0)[0] == 200


def test_a_killed_daemon_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        process, ready = begin(tmp_path)
        assert ready == b"ready\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "run/api.sock"))
        process.send_signal(number)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    take_down(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""A26: names that are exchanged for ever (renameat2) while somebody starts, enters, copies and looks: nothing leads outside."""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from security.asking import create
from security.trees import fingerprint

ROUNDS, SECONDS = 400, 6.0
#: In a folder of the container: `place` is a folder or a link out, as often as this machine can exchange them.
EXCHANGE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[2])
for name in ("place", "real"):
    os.makedirs(f"{name}-folder/inner", exist_ok=True)
os.makedirs("place", exist_ok=True)
os.makedirs("place/inner", exist_ok=True)
if not os.path.islink("link"):
    os.symlink(sys.argv[1], "link")
print("ready", flush=True)
while True:
    libc.renameat2(-100, b"place", -100, b"link", 2)
"""


@pytest.fixture
def victim(host: Host) -> Iterator[Path]:
    """A folder of the host's that everybody could write to, were he here; it has to stay as it is."""
    folder = host.folder / "victim"
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("of the host")
    for each in (folder, folder / "inner"):
        each.chmod(0o777)
    before = fingerprint(folder), fingerprint()
    yield folder
    assert (fingerprint(folder), fingerprint()) == before


@pytest.fixture(params=["up", "absolute", "proc"])
def exchanged(request: pytest.FixtureRequest, host: Host, alice: Person, victim: Path) -> Path:
    """Somebody who exchanges names in alice's volume `v` while the check runs."""
    out = {"up": f"{'../' * 12}{str(victim)[1:]}", "absolute": str(victim), "proc": f"/proc/1/root{victim}"}[
        request.param
    ]
    alice("run", "-d", "--name", "racer", "-v", "v:/v", "host", "python3", "-ISc", EXCHANGE, out, "/v")
    wait_until(lambda: "ready" in alice("logs", "racer"), what="names are exchanged")
    return victim


def rounds() -> Iterator[int]:
    """Count as many rounds as SECONDS have, at least some."""
    end = time.monotonic() + SECONDS
    for number in range(ROUNDS):
        yield number
        if number >= 5 and time.monotonic() > end:
            return


@pytest.mark.parametrize("kind", ["tmpfs", "volume"])
def test_a26_mount_target_in_a_volume(exchanged: Path, alice: Person, kind: str) -> None:
    inner = {"kind": kind, "target": "/v/place/inner"} | ({"source": "w"} if kind == "volume" else {})
    for _ in rounds():
        mounts = [{"kind": "volume", "source": "v", "target": "/v"}, inner]
        status, error = create(
            alice, command=["sh", "-c", "echo x > /v/place/inner/written; sleep 1000"], mounts=mounts
        )
        assert status == 201, error
        status, answer = alice.ask("POST", "/v1/containers/c/start")
        assert status < 500 or answer["error"]["code"] != "internal", answer
        seen = Path("/proc/self/mountinfo").read_text()
        assert str(exchanged) not in seen
        assert alice.ask("DELETE", "/v1/containers/c?force=1")[0] == 204


@pytest.mark.parametrize("verb", ["write", "read", "stat"])
def test_a26_copy_through_names_that_change(exchanged: Path, alice: Person, verb: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("copied")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    heard = b""
    for _ in rounds():
        if verb == "write":
            status, _ = alice.ask("PUT", "/v1/containers/racer/archive?path=/v/place", body=buffer.getvalue())
            assert status < 500
            continue
        path = "/v/place/file" if verb == "read" else "/v/place/"
        with alice.asking("GET", f"/v1/containers/racer/archive?path={path}") as connection:
            heard += b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"of the host" not in heard
    assert not (exchanged / "copied").exists()


def test_a26_working_directory_that_changes(exchanged: Path, alice: Person) -> None:
    body = {
        "command": ["sh", "-c", "pwd -P > /v/where; echo x > entered"],
        "detach": True,
        "working_directory": "/v/place/inner",
    }
    for _ in rounds():
        status, _ = alice.ask("POST", "/v1/containers/racer/exec", body=json.dumps(body).encode())
        assert status < 500
    assert not (exchanged / "inner/entered").exists()
    assert not (exchanged / "entered").exists()


def test_a26_logs_are_read_and_written_by_no_name_of_the_containers(host: Host, alice: Person) -> None:
    """A container's log stands in a folder that nothing of it can reach: no link in its place is followed."""
    alice("run", "-d", "--name", "c", "box", "sh", "-c", "while :; do echo line; done")
    folder = host.folder / "state/containers" / alice.look("c")["id"]
    assert folder.stat().st_mode & 0o077 == 0
    assert not list(folder.glob("upper/**/log"))
    wait_until(lambda: alice("logs", "--tail", "1", "c") != "", what="it writes")
    assert set(alice("logs", "--tail", "1", "c").splitlines()) == {"line"}


@pytest.mark.parametrize("out", ["up", "absolute"])
def test_a26_names_of_the_root_file_system_that_change(
    host: Host, alice: Person, victim: Path, out: str
) -> None:
    """The racer's own root is entered, copied to and from, and started anew while its names change."""
    aim = {"up": f"{'../' * 12}{str(victim)[1:]}", "absolute": str(victim)}[out]
    words = ("run", "-d", "--name", "racer", "host", "python3", "-ISc", EXCHANGE, aim, "/root")
    alice(*words)
    wait_until(lambda: "ready" in alice("logs", "racer"), what="names are exchanged")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("copied")
        tar.addfile(entry)
    body = {
        "command": ["sh", "-c", "echo x > entered"],
        "detach": True,
        "working_directory": "/root/place/inner",
    }
    heard = b""
    for number in rounds():
        status, _ = alice.ask("PUT", "/v1/containers/racer/archive?path=/root/place", body=buffer.getvalue())
        assert status < 500
        assert alice.ask("POST", "/v1/containers/racer/exec", body=json.dumps(body).encode())[0] < 500
        with alice.asking("GET", "/v1/containers/racer/archive?path=/root/place/file") as connection:
            heard += b"".join(iter(lambda: connection.recv(65536), b""))
        if number % 10 == 9:
            alice.ask("POST", "/v1/containers/racer/stop", body=b'{"timeout_s": 0}')
            assert alice.ask("POST", "/v1/containers/racer/start", body=b"{}")[0] < 500
    assert b"of the host" not in heard
    assert sorted(each.name for each in victim.rglob("*")) == ["file", "inner"]

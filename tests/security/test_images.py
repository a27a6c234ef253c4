# SPDX-License-Identifier: Apache-2.0
"""I1–I8, A25: images that nobody should trust, given by a tenant over the API.

Each is refused, with a clear error and nothing left of it, or stays within its own folder.  The host's files are read before
and after.
"""

import contextlib
import io
import os
import secrets
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from insula.image.layers import Layers
from insula.model.errors import InvalidImage
from security import archives
from security.archives import OUT, entry, file, link, with_busybox
from security.trees import fingerprint, found_on_host


def import_image(person: Person, data: bytes, *, name: str = "evil") -> tuple[int, str]:
    status, answer = person.ask("POST", f"/v1/images/import?name={name}", body=data)
    return status, answer.get("error", {}).get("code", "")


def files_of(host: Host) -> set[str]:
    """Return what the store has of layers."""
    place = host.folder / "state/layers"
    return {f"{folder}/{name}" for folder in ("sha256", "tmp") for name in os.listdir(place / folder)}


@pytest.fixture
def judged(the_host: Host) -> Iterator[Callable[[bytes], int]]:
    """Import an archive; afterwards nothing of the host has changed, and nothing of the archive has more than it may."""
    layers, before = files_of(the_host), fingerprint()

    def act(data: bytes) -> int:
        status, code = import_image(the_host.alice, data)
        assert status < 300 or code in ("invalid_image", "image_too_large", "quota_exceeded", "disk_full"), (
            status,
            code,
        )
        made = [the_host.folder / "state/layers" / name for name in files_of(the_host) - layers]
        assert bool(made) == (status < 300)
        for folder in made:
            harmless(folder / "fs")
        return status

    yield act
    the_host.alice.ask("DELETE", "/v1/images/evil")
    wait_until(lambda: files_of(the_host) == layers, what="nothing of it stays")
    assert fingerprint() == before
    assert not found_on_host(OUT)


def harmless(folder: Path) -> None:
    """Judge an unpacked layer: no device opens, no foreign owner, no mark that leads to another layer."""
    for place, names, others in os.walk(folder):
        for name in (*names, *others):
            path = os.path.join(place, name)
            found = os.lstat(path)
            assert found.st_uid <= 65535 and found.st_gid <= 65535, path
            assert found.st_rdev == 0, path
            marks = [] if os.path.islink(path) else os.listxattr(path, follow_symlinks=False)
            allowed = ("user.", "security.capability", "system.posix_acl", "trusted.overlay.opaque")
            assert not [mark for mark in marks if not mark.startswith(allowed)], (path, marks)


@pytest.mark.parametrize("name", archives.NAMES)
def test_i1_name(judged: Callable[[bytes], int], name: str) -> None:
    judged(archives.NAMES[name])


@pytest.mark.parametrize("name", archives.LINKS)
def test_i2_link(judged: Callable[[bytes], int], name: str) -> None:
    judged(archives.LINKS[name])


@pytest.mark.parametrize("name", archives.WHITEOUTS)
def test_i3_whiteout(judged: Callable[[bytes], int], name: str) -> None:
    judged(archives.WHITEOUTS[name])


@pytest.mark.parametrize("name", archives.NODES)
def test_i4_node(judged: Callable[[bytes], int], name: str) -> None:
    judged(archives.NODES[name])


@pytest.mark.parametrize("name", archives.BOMBS)
def test_i5_bomb(judged: Callable[[bytes], int], name: str) -> None:
    judged(archives.BOMBS[name])


ROOM_BYTES = 16 << 20
GROWING = ("gigabyte-of-zeros", "gigabyte-of-zeros-by-zstd", "gigabyte-in-a-gzip-in-a-gzip", "files", "folders", "links", "nothing-but-ends")  # fmt: skip


@pytest.fixture(scope="module")
def growing() -> dict[str, bytes]:
    return archives.growing()


@pytest.mark.parametrize("name", GROWING)
def test_i5_bomb_that_grows_is_stopped_at_its_makers_room(
    host: Host, alice: Person, growing: dict[str, bytes], name: str
) -> None:
    """Small to send, large to unpack: refused by what the tenant has room for, and never more of it lay on the disk."""
    data, before = growing[name], files_of(host)
    assert len(data) < 4 << 20
    host.root("tenant", "set", alice.tenant, f"images={ROOM_BYTES >> 20}m")
    place = host.folder / "state/layers/tmp"
    over, most = threading.Event(), [0, 0]

    def watch() -> None:
        while not over.wait(0.05):
            most[1] = max(most[1], sum(len(names) + len(files) for _, names, files in os.walk(place)))
            for each in place.glob("*/fs/zeros"):
                with contextlib.suppress(FileNotFoundError):
                    most[0] = max(most[0], each.lstat().st_blocks * 512)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        status, code = import_image(alice, data)
    finally:
        over.set()
        watcher.join()
        host.root("tenant", "set", alice.tenant, "images=default")
    assert (status, code) != (500, "internal")
    if name == "nothing-but-ends":  # what comes after the end is none of the archive's
        assert status < 300 or code == "invalid_image"
        alice.ask("DELETE", "/v1/images/evil")
    else:
        assert status >= 400 and code in ("quota_exceeded", "image_too_large", "invalid_image"), (
            status,
            code,
        )
    assert most[0] <= ROOM_BYTES and most[1] <= ROOM_BYTES // 512 + 2, most
    wait_until(lambda: files_of(host) == before, what="nothing of it stays")
    assert alice("run", "--rm", "box", "echo", "served") == "served"


def test_i5_endless_upload_that_is_cut_leaves_nothing_and_slows_nobody(
    host: Host, alice: Person, bob: Person
) -> None:
    before = files_of(host)
    piece = archives.tar_of(*(file(f"f{number}", b"") for number in range(200)))[: 200 * 512]
    over = threading.Event()
    head = (
        f"POST /v1/images/import?name=endless HTTP/1.1\r\nHost: insula\r\nContent-Length: {1 << 40}\r\n\r\n"
    )

    connection = alice.connected()  # not in the thread: meanwhile the whole process is alice

    def flood() -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(head.encode())
            while not over.is_set():
                connection.sendall(piece)

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        wait_until(lambda: len(files_of(host)) > len(before), what="it is being unpacked")
        assert bob("run", "--rm", "box", "echo", "served") == "served"
    finally:
        over.set()
        sender.join()
    wait_until(lambda: files_of(host) == before, what="nothing of it stays")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_i6_archive_that_is_cut(judged: Callable[[bytes], int], part: float) -> None:
    data = archives.tar_of(*(file(f"f{number}", secrets.token_bytes(700)) for number in range(40)))
    assert judged(data[: int(len(data.rstrip(b"\0")) * part)]) == 400


def test_i6_content_that_is_not_what_its_digest_says(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    first = layers.unpack(io.BytesIO(archives.tar_of(file("a", b"1"))))
    with pytest.raises(InvalidImage):
        layers.unpack(io.BytesIO(archives.tar_of(file("a", b"2"))), expected=first.digest)
    assert [each.digest for each in layers.list()] == [first.digest]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../etc", "sha256:" + "0" * 63 + "/", "md5:" + "0" * 64, "sha256:" + "A" * 64, ""]
)
def test_i6_digest_that_is_none(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidImage):
        Layers(tmp_path).folder(digest)


def test_i7_same_layer_twice_at_once_and_half_of_it(host: Host, alice: Person) -> None:
    data = archives.tar_of(*(file(f"f{number}", secrets.token_bytes(2000)) for number in range(300)))
    before, answers = files_of(host), []
    bodies = {f"one{number}": data for number in range(4)} | {"half": data[: len(data) // 2]}
    threads = [
        threading.Thread(
            target=lambda name=name, body=body: answers.append((name, import_image(alice, body, name=name)))
        )
        for name, body in bodies.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = dict(answers)
    assert found.pop("half") == (400, "invalid_image")
    assert {status for status, _ in found.values()} <= {200, 201}
    wait_until(lambda: len(files_of(host) - before) == 1, what="it is there once")
    for name in found:
        alice("image", "rm", name)
    wait_until(lambda: files_of(host) == before, what="nothing of it stays")


def test_i7_private_layer_of_another_tenant_is_not_used_by_its_digest(alice: Person, bob: Person) -> None:
    secret = secrets.token_hex(16)
    assert import_image(alice, with_busybox(file("etc/secret", secret.encode())), name="private")[0] < 300
    record = alice.json("image", "inspect", "private")[0]
    digests = [record["id"], record["id"].removeprefix("sha256:"), record["id"].removeprefix("sha256:")[:12]]
    digests += [each["digest"] for each in record["layers"]]
    for digest in (*digests, f"private@{record['id']}", "private"):
        done = bob.give("run", "--rm", digest, "cat", "/etc/secret")
        assert done.code == 125 and secret not in done.out, digest
        assert bob.give("image", "inspect", digest).code != 0
    alice("image", "rm", "private")


DATABASES = {
    "link-out": link("etc/passwd", "/../../../../../../etc/shadow"),
    "link-to-proc": link("etc/passwd", "/proc/1/environ"),
    "fifo": entry("etc/passwd", tarfile.FIFOTYPE, mode=0o644),
    "folder": entry("etc/passwd", tarfile.DIRTYPE, mode=0o755),
    "huge": file("etc/passwd", b"x:x:1:1::/:/bin/sh\n" * (8 << 16)),
    "one-line": file("etc/passwd", b"root" * (6 << 18)),
    "numbers": file("etc/passwd", b"guest:x:4294967296:99999999999999999999::/home:/bin/sh\n"),
    "no-numbers": file("etc/passwd", b"guest:x:zero:0x0::/home:/bin/sh\n"),
    "not-text": file("etc/passwd", bytes(range(256)) * 100),
}


@pytest.mark.parametrize("name", DATABASES)
def test_i8_database_of_users(alice: Person, name: str) -> None:
    data = with_busybox(DATABASES[name], without="etc/passwd")
    assert import_image(alice, data, name="users")[0] < 300
    done = alice.give("run", "--rm", "-u", "guest", "users", "id", "-u")
    assert done.code in (0, 125, 126) and (done.code != 0 or done.out.strip() != "0"), done
    alice("image", "rm", "users")


PLACES = ("dev", "dev/null", "dev/console", "dev/pts", "dev/pts/0", "dev/ptmx", "dev/shm", "proc", "proc/self", "sys", "etc/resolv.conf", "etc/hosts", "etc/hostname")  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("place", PLACES)
def test_a25_what_we_mount_on_is_something_else_in_the_image(
    host: Host, alice: Person, place: str, kind: str
) -> None:
    victim = host.folder / "victim"
    victim.mkdir(exist_ok=True)
    victim.chmod(0o777)
    (victim / "file").write_text("of the host")
    (victim / "file").chmod(0o666)
    before = fingerprint(victim), fingerprint()
    fill = {
        "link": link(place, f"{'/..' * 8}{victim}{'/file' if '.' in place or 'host' in place else ''}"),
        "fifo": entry(place, tarfile.FIFOTYPE, mode=0o666),
        "folder": entry(place, tarfile.DIRTYPE, mode=0o777),
    }[kind]
    parents = [entry(place.split("/")[0], tarfile.DIRTYPE, mode=0o755)] if "/" in place else []
    status, code = import_image(alice, with_busybox(*parents, fill, without=place), name="odd")
    assert status < 300 or code == "invalid_image"
    if status < 300:
        done = alice.give("run", "-d", "--name", "c", "odd", "sleep", "1000")
        assert done.code in (0, 125), done
        if done.code == 0:
            alice.give(
                "exec",
                "c",
                "sh",
                "-c",
                "echo written > /dev/null; echo written > /etc/hosts; echo x > /dev/console",
            )
            alice.give("cp", f"c:/{place}", "-")
        alice.give("rm", "-f", "c")
        assert alice.ask("DELETE", "/v1/images/odd")[0] == 204
    assert (fingerprint(victim), fingerprint()) == before
    assert (victim / "file").read_text() == "of the host"


REPLACED = ("/dev/null", "/dev/console", "/dev/ptmx", "/dev/pts", "/dev/shm", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/passwd", "/etc/group", "/bin")  # fmt: skip


@pytest.fixture
def victim(host: Host) -> Iterator[Path]:
    """A folder of the host's that everybody could write to, were he here; it has to stay as it is."""
    folder = host.folder / "victim"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    (folder / "file").write_text("of the host")
    (folder / "file").chmod(0o666)
    before = fingerprint(folder), fingerprint()
    yield folder
    assert (fingerprint(folder), fingerprint()) == before


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a25_what_is_replaced_by_the_program_leads_nowhere(
    host: Host, alice: Person, victim: Path, kind: str
) -> None:
    """By its own root, while it runs: then others enter, copy, attach; it is checkpointed and restored, stopped and started."""
    made = {
        "link": f'ln -s {"../" * 12}{str(victim)[1:]}/file "$p"',
        "fifo": 'mkfifo "$p"',
        "folder": 'mkdir "$p"',
    }[kind]
    script = f'for p in {" ".join(REPLACED)}; do umount "$p"; mv "$p" "$p.was" || rm -rf "$p"; {made}; done 2>/tmp/said; PATH=/bin.was; echo ready; while :; do sleep 1; done'
    alice("run", "-d", "--name", "c", "box", "/bin/busybox", "sh", "-c", script)
    wait_until(lambda: "ready" in alice("logs", "c"), what="it has replaced them")

    def enter() -> None:
        for words in (("exec", "c", "/bin.was/sh", "-c", "echo written > /dev/null; echo x >> /etc/hosts"), ("exec", "-u", "guest", "c", "/bin.was/id"), ("cp", "c:/etc/hosts", "-"), ("logs", "c"), ("top", "c")):  # fmt: skip
            done = alice.give(*words)
            assert "of the host" not in done.out and "Traceback" not in done.err, done
        with alice.begin("attach", "c") as attached:
            wait_until(
                lambda: attached.poll() is not None or alice.look("c")["status"] == "running",
                what="it is there",
            )
            attached.kill()

    enter()
    done = alice.give("checkpoint", "create", "c", deadline_s=60)
    if done.code == 0:
        done = alice.give("restore", "c", deadline_s=60)
        if done.code == 0:
            enter()
    else:
        assert "cannot checkpoint" in done.err, done
    assert "Traceback" not in done.err, done
    alice.give("kill", "c")
    alice.wait_for("c", status="exited")
    # Its layer has them now: what is mounted at a start meets them.
    done = alice.give("start", "c")
    assert done.code in (0, 1, 125) and "Traceback" not in done.err, done
    if done.code == 0:
        enter()


def test_i4_setuid_files_of_layers_are_out_of_every_users_reach(host: Host, alice: Person) -> None:
    """CVE-2021-41091: whoever walks into a root file system on the host finds its setuid files."""
    assert (
        import_image(alice, with_busybox(file("bin/su2", b"#!/bin/sh\n", mode=0o6755)), name="suid")[0] < 300
    )
    found = subprocess.run(
        ["setpriv", "--reuid", str(alice.uid), "--regid", "100", "--clear-groups", "find", str(host.folder / "state")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout.splitlines() in ([], [str(host.folder / "state")])
    alice("image", "rm", "suid")

# SPDX-License-Identifier: Apache-2.0
"""T1, T2, T4, T5, T6: a tenant asks the daemon, which is root, to do for it what it may not."""

import json
import os
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from accounts import AccountsHost
from hosted import ALICE_UID, Host, Person, wait_until
from insula.api.routes import ROUTES, Route
from insula.model.grant import Action
from security.asking import create, name_of, target
from security.trees import exchange, fingerprint

ATTEMPTS_SECONDS = 3.0
MOST_ATTEMPTS = 400
"""Of starts while names change places; as many as both outcomes need."""

#: HOME is alice's own; LINK leads out of it, BOB is another's, READABLE is root's and everybody's to read.
BINDS = (
    "/", "/etc", "/etc/shadow", "/proc", "/sys", "/dev", "/dev/null", "/root", "/var/lib", "/run", "STATE", "STATE/pki", "RUN", "RUN/api.sock", "LINK", "LINK/shadow",
    "HOME/proc", "HOME/up", "HOME/self", "HOME/absolute", "HOME/../bob", "HOME/roots", "HOME/roots/x", "HOME/fifo", "HOME/none", "HOME/..", "BOB", "BOB/x", "HOMEx",
    "/proc/self/root/etc", "/proc/1/root", "relative", "/home/../etc", "//etc", "",
)  # fmt: skip


def _owned(path: Path, uid: int) -> Path:
    os.lchown(path, uid, uid)
    return path


@pytest.fixture
def home(ruled: AccountsHost) -> Path:
    """Alice's home, with what she could put there to be led out of it."""
    home = ruled.home("alice")
    if not (home / "mine").exists():
        (home / "mine").mkdir()
        _owned(home / "mine", ALICE_UID)
        (home / "mine/x").write_text("mine")
        _owned(home / "mine/x", ALICE_UID)
        links = {
            "out": "/etc",
            "up": "../..",
            "proc": "/proc",
            "self": "/proc/self/root",
            "absolute": str(ruled.home("bob")),
        }
        for name, to in links.items():
            (home / name).symlink_to(to)
            _owned(home / name, ALICE_UID)
        os.mkfifo(home / "fifo", 0o666)
        (home / "roots").mkdir(mode=0o700)
        (home / "roots/x").write_text("root's")
        (ruled.home("bob") / "x").write_text("bob's")
    return home


@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_t1_bind_mount_of_what_is_the_tenants_own(ruled: AccountsHost, home: Path, read_only: bool) -> None:
    """What makes the refusals below worth something: this user may mount, by the same request."""
    for source in (home, home / "mine", home / "mine/x"):
        mount = {"kind": "bind", "source": str(source), "target": "/host", "read_only": read_only}
        status, error = create(ruled.alice, mounts=[mount])
        assert status == 201, (source, error)
        ruled.alice("start", "c")
        ruled.alice("rm", "-f", "c")


@pytest.mark.parametrize("source", BINDS)
@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_t1_bind_mount_of_what_is_not_the_tenants(
    ruled: AccountsHost, home: Path, source: str, read_only: bool
) -> None:
    place = source
    for word, path in {"STATE": ruled.folder / "state", "RUN": ruled.folder / "run", "LINK": home / "out", "HOME": home, "BOB": ruled.home("bob")}.items():  # fmt: skip
        place = place.replace(word, str(path))
    before = fingerprint()
    mount = {"kind": "bind", "source": place, "target": "/host", "read_only": read_only}
    status, error = create(ruled.alice, mounts=[mount])
    assert status in (400, 403), (status, error)
    assert ruled.remains() == []
    assert fingerprint() == before


class _Exchanged:
    """Two entries of a folder whose names change places as often as they can, for as long as the block lasts."""

    def __init__(self, one: Path, other: Path) -> None:
        self._paths = (os.fsencode(one), os.fsencode(other))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._exchange)
        self.count = 0

    def _exchange(self) -> None:
        while not self._over.is_set():
            exchange(*self._paths)
            self.count += 1

    def __enter__(self) -> "_Exchanged":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("part", ["last", "middle"])
def test_t1_path_that_is_exchanged_while_it_is_bound(ruled: AccountsHost, home: Path, part: str) -> None:
    """A folder of alice's and a link to bob's home change names during her starts: mounted is hers, or nothing."""
    folder, link = home / f"{part}-folder", home / f"{part}-link"
    inner = folder if part == "last" else folder / "deep"
    inner.mkdir(parents=True, exist_ok=True)
    (inner / "x").write_text("mine")
    for each in (folder, inner, inner / "x"):
        _owned(each, ALICE_UID)
    aim = ruled.home("bob")
    if part == "middle":
        (aim / "deep").mkdir(exist_ok=True)
        (aim / "deep/x").write_text("bob's")
        for each in (aim / "deep", aim / "deep/x"):
            each.chmod(0o777)
    if not link.is_symlink():
        link.symlink_to(aim)
        _owned(link, ALICE_UID)
    aim.chmod(0o755)  # so that only the link itself stands in the way
    ruled.alice(
        "run", "-d", "--name", "c", "-v", f"{inner}:/host:ro", "box", "sh", "-c", "cat /host/x; sleep 1000"
    )
    bound, refused = 0, 0
    try:
        with _Exchanged(folder, link) as exchanged:
            end = time.monotonic() + ATTEMPTS_SECONDS
            while time.monotonic() < end or not (bound and refused):
                assert bound + refused < MOST_ATTEMPTS, (bound, refused)
                ruled.alice.ask("POST", "/v1/containers/c/stop", body=b'{"timeout_s": 0}')
                status, answer = ruled.alice.ask("POST", "/v1/containers/c/start", body=b"{}")
                if status < 300:
                    bound += 1
                    assert ruled.alice.give("exec", "c", "cat", "/host/x").out in ("mine", "")
                else:
                    refused += 1
                    assert status == 403, answer
        assert exchanged.count > bound + refused
        assert "bob's" not in ruled.alice("logs", "c")
    finally:
        aim.chmod(0o700)
    assert (aim / "x").read_text() == "bob's"


def test_t1_path_that_is_exchanged_after_the_check(host: Host, root: Person, tmp_path: Path) -> None:
    """Even an administrator's mount is what was looked at: one handle, no second look."""
    folder, other = host.folder / "mine", host.folder / "other"
    for each in (folder, other):
        each.mkdir(exist_ok=True)
    (folder / "x").write_text("mine")
    create(root, mounts=[{"kind": "bind", "source": str(folder), "target": "/host"}])
    folder.rename(host.folder / "was")
    folder.symlink_to("/etc")
    done = root.give("start", "c")
    seen = root.give("exec", "c", "ls", "/host").out.split() if done.code == 0 else []
    folder.unlink()
    assert "shadow" not in seen


def test_t2_setuid_file_of_a_volume_is_out_of_reach_on_the_host(host: Host, alice: Person) -> None:
    alice(
        "run",
        "--rm",
        "-v",
        "v:/v",
        "box",
        "sh",
        "-c",
        "cp /bin/busybox /v/sh; chmod 6755 /v/sh; chown 0:0 /v/sh",
    )
    (made,) = host.folder.glob("state/volumes/*/v/sh")
    for uid in (alice.uid, 65534):
        words = ["setpriv", "--reuid", str(uid), "--regid", "65534", "--clear-groups", str(made), "id"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "uid" not in done.stdout, done


def test_t2_files_that_a_container_makes_in_its_makers_folder_are_the_makers(
    ruled: AccountsHost, home: Path
) -> None:
    """No file of root's, no capability and no device, whoever the container's program is; and what was root's stays so."""
    folder = home / "shared"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    _owned(folder, ALICE_UID)
    (folder / "roots").write_text("root's")
    (folder / "roots").chmod(0o666)
    script = (
        "cp /bin/busybox /host/sh; chmod 6755 /host/sh; chown 0:0 /host/sh; mkdir /host/deep; chmod 7777 /host/deep; "
        "touch /host/ones; chown 1:1 /host/ones; ln -s /etc /host/link; ln /host/roots /host/twin; chown 0 /host/roots; chmod 4777 /host/roots; "
        "mknod /host/disk b 8 0; mknod /host/null c 1 3; mknod /host/gone c 0 0; mkfifo /host/fifo; su guest -c 'touch /host/guest'; true"
    )
    ruled.alice("run", "--rm", "-v", f"{folder}:/host", "box", "sh", "-c", script)
    found = {path.name: path.lstat() for path in folder.rglob("*")}
    assert {"sh", "deep", "fifo"} <= found.keys(), "nothing was made: this shows nothing"
    for name, each in found.items():
        is_device = stat.S_ISBLK(each.st_mode) or stat.S_ISCHR(each.st_mode)
        assert not is_device or each.st_rdev == 0, name  # 0:0 is none; anybody may make it
        if name in ("roots", "twin"):
            assert (each.st_uid, stat.S_IMODE(each.st_mode)) == (0, 0o666), name
            continue
        assert (each.st_uid, each.st_gid) == (ALICE_UID, ALICE_UID), (name, each)
        assert stat.S_ISLNK(each.st_mode) or not os.listxattr(folder / name), name
    words = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        str(folder / "sh"),
        "id",
        "-u",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("", "65534", str(ALICE_UID)), done


def test_t2_files_that_a_container_makes_in_an_administrators_folder_are_what_root_gave(
    root: Person, host: Host
) -> None:
    """Of a folder that an administrator gave it a container may make what is root's; still no device."""
    folder = host.folder / "shared"
    folder.mkdir(exist_ok=True)
    root(
        "run",
        "--rm",
        "-v",
        f"{folder}:/host",
        "box",
        "sh",
        "-c",
        "echo x > /host/made; mknod /host/disk b 8 0; true",
    )
    assert [each.name for each in folder.iterdir()] == ["made"]


RESTRICTED: dict[str, dict[str, object]] = {
    "capability": {"capabilities_add": ["SYS_ADMIN"]},
    "capability-lower-case": {"capabilities_add": ["cap_sys_admin"]},
    "capability-all": {"capabilities_add": ["ALL"]},
    "capability-all-but-one": {"capabilities_add": ["ALL"], "capabilities_drop": ["CHOWN"]},
    "capability-module": {"capabilities_add": ["SYS_MODULE"]},
    "capability-bpf": {"capabilities_add": ["BPF"]},
    "capability-raw-io": {"capabilities_add": ["SYS_RAWIO"]},
    "capability-read-all": {"capabilities_add": ["DAC_READ_SEARCH"]},
    "capability-resource": {"capabilities_add": ["SYS_RESOURCE"]},
    "bind": {"mounts": [{"kind": "bind", "source": "/etc", "target": "/x"}]},
    "bind-over-volume": {"mounts": [{"kind": "volume", "source": "v", "target": "/x"}, {"kind": "bind", "source": "/etc", "target": "/x"}]},
    "volume-that-is-a-path": {"mounts": [{"kind": "volume", "source": "/etc", "target": "/x"}]},
    "tmpfs-with-a-source": {"mounts": [{"kind": "volume", "source": "../../etc", "target": "/x"}]},
    "target-proc": {"mounts": [{"kind": "tmpfs", "target": "/proc/sys"}]},
    "target-proc-by-dots": {"mounts": [{"kind": "tmpfs", "target": "/x/../proc"}]},
    "target-dev": {"mounts": [{"kind": "tmpfs", "target": "//dev//"}]},
    "target-root": {"mounts": [{"kind": "tmpfs", "target": "/."}]},
    "privileged": {"privileged": True},
    "host-network": {"network": "host"},
    "host-pid": {"pid": "host"},
    "no-seccomp": {"seccomp": False},
    "devices": {"devices": ["/dev/sda"]},
    "uid-base": {"uid_base": 0},
    "tenant": {"tenant": "root"},
    "owner": {"owner": "other"},
    "sysctl": {"sysctls": {"kernel.core_pattern": "|/x"}},
    "privileged-port-of-the-host": {"ports": [{"host_port": 22, "container_port": 22, "host_address": "not-an-address"}]},
    "rlimit": {"rlimits": {"nofile": -5}},
}  # fmt: skip


@pytest.mark.parametrize("name", RESTRICTED)
def test_t4_what_is_restricted_is_refused_at_create(host: Host, alice: Person, name: str) -> None:
    status, error = create(alice, **RESTRICTED[name])
    assert 400 <= status < 500, (status, error)
    assert host.remains() == []


@pytest.mark.parametrize("name", ["capability", "capability-bpf", "target-proc"])
def test_t4_what_is_restricted_is_refused_as_another_tenants(host: Host, alice: Person, name: str) -> None:
    body = json.dumps({"image": "box", "command": ["true"], **RESTRICTED[name]}).encode()
    for tenant in ("root", "*", host.bob.tenant, "", "..", "no-such"):
        status, _ = alice.ask("POST", f"/v1/containers?tenant={tenant}", body=body)
        assert 400 <= status < 500
    assert host.remains() == []


@pytest.mark.parametrize(
    "field", ["capabilities_add", "mounts", "image", "user", "privileged", "tenant", "spec", "uid_base"]
)
@pytest.mark.parametrize("verb", ["exec", "restore", "checkpoints", "migrate", "rename", "stop"])
def test_t4_no_other_route_takes_a_restricted_field(host: Host, alice: Person, verb: str, field: str) -> None:
    if (verb, field) == ("exec", "user"):
        field = "capabilities"
    create(alice)
    given = {
        "exec": {"command": ["true"], "detach": True},
        "migrate": {"target": "x"},
        "rename": {"name": "d"},
    }.get(verb, {})
    status, answer = alice.ask(
        "POST", f"/v1/containers/c/{verb}", body=json.dumps({**given, field: ["SYS_ADMIN"]}).encode()
    )
    assert status in (400, 409), answer
    assert alice.look("c")["status"] == "created"


ADMINISTRATION = [each for each in ROUTES if each.action in (Action.ADMIN, Action.PEER)]


@pytest.mark.parametrize("route", ADMINISTRATION, ids=name_of)
def test_t4_administration_is_not_a_tenants(the_host: Host, route: Route) -> None:
    for query in ("", f"?tenant={the_host.alice.tenant}", "?tenant=root"):
        status, answer = the_host.alice.ask(route.method, target(route, "x") + query, body=b"{}")
        assert status in (403, 404), answer


@pytest.mark.parametrize(
    "mirror",
    ["http://127.0.0.1:PORT/debian", "http://localhost:PORT/", "http://[::1]:PORT/", "http://0:PORT/", "http://2130706433:PORT/", "http://127.1:PORT/",
     "http://0x7f000001:PORT/", "http://169.254.169.254/", "file:///etc", "copy:/etc", "cdrom:x", "ftp://127.0.0.1:PORT/", "http://u:p@127.0.0.1:PORT/", "http://127.0.0.1:PORT/ [trusted=yes]"],
)  # fmt: skip
def test_t5_mirror_that_is_a_service_of_the_host(host: Host, alice: Person, mirror: str) -> None:
    with host.entered():
        server = socket.create_server(("127.0.0.1", 0))
    with server:
        server.setblocking(False)
        wish = {"name": "x", "mirror": mirror.replace("PORT", str(server.getsockname()[1]))}
        status, answer = alice.ask("POST", "/v1/images/build", body=json.dumps(wish).encode())
        assert status in (400, 403), answer
        with pytest.raises(BlockingIOError):
            server.accept()


WORDS = ["-o", "--foo", "a;id", "a b", "$(id)", "a\nb", "../x", "A", "a=1", "a/b", "`id`", "|id", "a,b", "é"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("field", ["packages", "debian", "name"])
def test_t6_word_that_could_be_an_option(host: Host, alice: Person, field: str, word: str) -> None:
    marker = Path("/tmp/insula-t6")
    wish = {"name": "x", field: [word] if field == "packages" else word}
    if field == "name" and word == "a/b":
        wish["name"] = "a//b"
    status, answer = alice.ask("POST", "/v1/images/build", body=json.dumps(wish).encode())
    if status < 300:  # it is an operation, which ends with a refusal
        wait_until(
            lambda: (
                alice.ask("GET", f"/v1/operations/{answer['id']}")[1]["status"] not in ("running", "pending")
            ),
            what="it ends",
        )
        answer = alice.ask("GET", f"/v1/operations/{answer['id']}")[1]
        assert answer["error"], answer
    else:
        assert 400 <= status < 500, answer
    assert not marker.exists()

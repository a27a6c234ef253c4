# SPDX-License-Identifier: Apache-2.0
"""T1, T2, T4, T5, T6: a tenant asks the daemon, which is root, to do for it what it may not."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from hosted import Host, Person, wait_until
from insula.api.routes import ROUTES, Route
from insula.model.grant import Action
from security.asking import create, name_of, target
from security.trees import fingerprint

BINDS = ("/", "/etc", "/etc/shadow", "/proc", "/sys", "/dev", "/dev/null", "/root", "/var/lib", "/run", "STATE", "STATE/pki", "RUN", "RUN/api.sock", "LINK", "LINK/shadow", "/proc/self/root/etc", "/proc/1/root", "relative", "/home/../etc", "//etc", "")  # fmt: skip


@pytest.mark.parametrize("source", BINDS)
@pytest.mark.parametrize("read_only", [True, False], ids=["ro", "rw"])
def test_t1_bind_mount_of_what_is_not_the_tenants(
    host: Host, alice: Person, source: str, read_only: bool
) -> None:
    link = host.folder / "alice-link"
    if not link.is_symlink():
        link.symlink_to("/etc")
        os.lchown(link, alice.uid, 100)
    place = (
        source.replace("STATE", str(host.folder / "state"))
        .replace("RUN", str(host.folder / "run"))
        .replace("LINK", str(link))
    )
    before = fingerprint()
    mount = {"kind": "bind", "source": place, "target": "/host", "read_only": read_only}
    status, error = create(alice, mounts=[mount])
    assert status in (400, 403), (status, error)
    assert host.remains() == []
    assert fingerprint() == before


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


def test_t2_files_that_a_container_makes_in_an_administrators_folder_stay_its_own_kind(
    root: Person, host: Host
) -> None:
    folder = host.folder / "shared"
    folder.mkdir(exist_ok=True)
    script = "cp /bin/busybox /host/sh; chmod 4755 /host/sh; mknod /host/disk b 8 0; true"
    root("run", "--rm", "-v", f"{folder}:/host", "box", "sh", "-c", script)
    assert not (folder / "disk").exists()
    mount = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == "/"
    )
    assert mount  # what a container's own root made is root's, since an administrator gave it this folder


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

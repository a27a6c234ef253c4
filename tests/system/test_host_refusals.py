# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind: a clear error with a stable code, and nothing half-made is left behind."""

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hosted import DEADLINE_S, Host, Person, add_file, add_link, busybox_tar


def create(root: Person, **spec: object) -> tuple[int, str, str]:
    """Ask for a container; returns status, code and message."""
    body = json.dumps({"image": "box", "command": ["true"], **spec}).encode()
    status, answer = root.ask("POST", "/v1/containers", body=body)
    return status, answer.get("error", {}).get("code", ""), answer.get("error", {}).get("message", "")


@pytest.mark.parametrize(
    ("spec", "status", "code", "named"),
    [
        ({"image": "nothing"}, 404, "image_not_found", "`nothing`"),
        ({"network": "nowhere"}, 404, "network_not_found", "`nowhere`"),
        ({"network": "host"}, 404, "network_not_found", "host"),
        ({"name": "bad/name"}, 400, "invalid_spec", "`bad/name`"),
        ({"memory_bytes": 4096}, 422, "limit_refused", "4096"),
        ({"memory_bytes": -1}, 422, "limit_refused", "-1"),
        ({"pids": 1}, 422, "limit_refused", "1"),
        ({"cpus_milli": 1}, 422, "limit_refused", "0.001"),
        ({"working_directory": "not/absolute"}, 400, "invalid_spec", "`not/absolute`"),
        ({"environment": ["=x"]}, 400, "invalid_spec", "`=x`"),
        ({"command": ["a\0b"]}, 400, "invalid_spec", "zero byte"),
        ({"entrypoint": [], "command": []}, 400, "invalid_spec", "no command"),
        ({"hostname": "-x"}, 400, "invalid_spec", "`-x`"),
        ({"address": "10.99.99.99"}, 400, "invalid_spec", "10.99.99.99"),
        ({"address": "nonsense"}, 400, "invalid_spec", "`nonsense`"),
        ({"address": "10.213.0.9", "network": "none"}, 400, "invalid_spec", "without network"),
        ({"mounts": [{"kind": "volume", "source": "../x", "target": "/x"}]}, 400, "invalid_spec", "`../x`"),
        (
            {"mounts": [{"kind": "volume", "source": "v", "target": "/a/../../x"}]},
            400,
            "invalid_spec",
            "`..`",
        ),
        ({"mounts": [{"kind": "volume", "source": "v", "target": "/proc"}]}, 400, "invalid_spec", "`/proc`"),
        (
            {"mounts": [{"kind": "bind", "source": "/no/such", "target": "/x"}]},
            400,
            "invalid_spec",
            "`/no/such`",
        ),
        ({"ports": [{"host_port": 70000, "container_port": 80}]}, 400, "invalid_spec", "80"),
        ({"ports": [{"host_port": 80, "container_port": 0}]}, 400, "invalid_spec", "0"),
        ({"stop_signal": "NOSUCH"}, 400, "invalid_spec", "NOSUCH"),
        ({"capabilities_add": ["NOSUCH"]}, 400, "invalid_spec", "NOSUCH"),
        ({"rlimits": {"nosuch": 1}}, 400, "invalid_spec", "nosuch"),
        ({"restart": {"kind": "sometimes"}}, 400, "invalid_spec", "sometimes"),
        ({"no_such_field": 1}, 400, "invalid_spec", "no_such_field"),
        ({"command": "a string"}, 400, "invalid_spec", "command"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_with_its_code(
    host: Host, spec: dict[str, object], status: int, code: str, named: str
) -> None:
    found = create(host.root, **{"mounts": [{"kind": "volume", "target": "/anonymous"}], **spec})
    assert found[:2] == (status, code), found
    assert named in found[2], found
    assert host.remains() == []
    assert host.root("volume", "ls", "-q") == ""


def test_a_taken_name_leaves_its_holder_alone(host: Host, alice: Person) -> None:
    identifier = alice("create", "--name", "one", "box", "true")
    said = alice.fails("create", "--name", "one", "-v", "fresh:/x", "box", "true", code=125)
    assert "`one`" in said and "insula rm one" in said
    assert alice.look("one")["id"] == identifier
    assert alice("volume", "ls", "-q") == ""
    assert len(list((host.folder / "state/containers").iterdir())) == 1
    alice("create", "--name", "two", "box", "true")
    assert "`one`" in alice.fails("rename", "two", "one")
    assert alice.look("two")["name"] == "two"


@pytest.mark.parametrize(
    ("command", "code", "exit_code"),
    [
        (["nothing-here"], "command_not_found", 127),
        (["/etc/motd"], "command_not_executable", 126),
        (["/etc"], "command_not_executable", 126),
    ],
)
def test_a_program_that_cannot_run_leaves_a_container_that_can_be_looked_at(
    host: Host, alice: Person, command: list[str], code: str, exit_code: int
) -> None:
    said = alice.fails("run", "-d", "--name", "c", "-p", "18080:80", "box", *command, code=exit_code)
    assert command[0] in said
    assert alice.look("c")["status"] == "created"
    assert [each for each in host.remains() if "/state/" not in each] == []
    status, body = host.root.ask("POST", f"/v1/containers/c/start?tenant={alice.tenant}")
    assert (status, body["error"]["code"]) == (422, code)
    assert alice("run", "--rm", "-p", "18080:80", "box", "echo", "port is free") == "port is free"


def test_a_memory_limit_below_what_the_program_needs(alice: Person) -> None:
    assert "less than a program needs" in alice.fails("run", "--rm", "-m", "1m", "box", "true", code=125)
    done = alice.give("run", "--name", "c", "-m", "8m", "--memory-swap", "8m", "box", "tail", "/dev/zero")
    assert done.code == 137
    assert alice.look("c")["oom_killed"]


def test_words_that_make_no_sense_name_themselves(alice: Person) -> None:
    for words in (
        ("-m", "lots"),
        ("--cpus", "x"),
        ("-p", "a:b"),
        ("--restart", "never-ever"),
        ("-v", "a:b:c:d"),
    ):
        said = alice.fails("run", "--rm", *words, "box", "true", code=125)
        assert f"`{words[1]}`" in said or words[1].split(":")[0] in said, said
        assert "hint" in said or "example" in said, said


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_request"),
        (b"{", "bad_request"),
        (b"\xff\xfe", "bad_request"),
        (b'{"image": "box"}{', "bad_request"),
        (b'{"labels":' * 2000, "invalid_spec"),
        (b"[]", "invalid_spec"),
        (b"null", "invalid_spec"),
        (b'{"image": 5}', "invalid_spec"),
    ],
)
def test_a_body_that_is_no_wish_is_a_bad_request(host: Host, body: bytes, code: str) -> None:
    status, answer = host.root.ask("POST", "/v1/containers", body=body)
    assert (status, answer["error"]["code"]) == (400, code), answer
    assert host.remains() == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PATCH /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST /v1/containers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/containers/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/containers/..%2f..%2fetc HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_harm_nobody(host: Host, request_bytes: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(host.socket_path))
        try:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b"" or b" 4" in answer.split(b"\r\n", 1)[0], answer[:200]
    assert b"Traceback" not in answer
    assert host.root.ask("GET", "/v1/version")[0] == 200


def tar_of(fill: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        fill(tar)
    return buffer.getvalue()


def through_a_link(tar: tarfile.TarFile) -> None:
    add_link(tar, "out", "/tmp")
    add_file(tar, "out/insula-escaped", b"x")


def hard_link_out(tar: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("shadow")
    entry.type, entry.linkname = tarfile.LNKTYPE, "../../../../etc/shadow"
    tar.addfile(entry)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is no tar at all",
        b"\x1f\x8b\x08\x00garbage",
        tar_of(lambda tar: add_file(tar, "a", b"x" * 5000))[:2000],
        tar_of(lambda tar: add_file(tar, "../../escaped", b"x")),
        tar_of(lambda tar: add_file(tar, "/../escaped", b"x")),
        tar_of(through_a_link),
        tar_of(hard_link_out),
    ],
    ids=["empty", "text", "gzip", "cut", "dots", "root-dots", "link", "hard-link"],
)
def test_a_tar_that_cannot_be_trusted_makes_no_image(host: Host, alice: Person, data: bytes) -> None:
    before = sorted(os.listdir(host.folder / "state/layers"))
    status, answer = host.root.ask("POST", f"/v1/images/import?name=evil&tenant={alice.tenant}", body=data)
    assert (status, answer["error"]["code"]) == (400, "invalid_image"), answer
    assert "cannot find image" in alice.fails("image", "inspect", "evil")
    assert sorted(os.listdir(host.folder / "state/layers")) == before
    assert not Path("/tmp/insula-escaped").exists()


def test_links_in_a_container_do_not_lead_cp_out_of_it(alice: Person, host: Host) -> None:
    image = busybox_tar(
        extra=lambda tar: (add_link(tar, "var/out", "/etc"), add_link(tar, "var/up", "../../../.."))
    )  # type: ignore[func-returns-value]
    alice("image", "import", "-", "links", data=image)
    alice("run", "-d", "--name", "c", "links", "sleep", "1000")
    with alice.begin("cp", "c:/var/out/motd", "-") as process:
        data, _ = process.communicate(timeout=DEADLINE_S)
    assert b"not a program" in data
    secret = host.folder / "state/secret"
    secret.write_text("of the host")
    alice.fails("cp", f"c:/var/up{secret}", "-")
    alice.fails("cp", f"c:/proc/1/root/../../{secret}", "-")
    tar = tar_of(lambda tar: (add_link(tar, "hop", "/"), add_file(tar, "hop/etc/hopped", b"x")))  # type: ignore[func-returns-value]
    said = alice.fails("cp", "-", "c:/var", data=tar)
    assert "hop" in said
    assert not Path("/etc/hopped").exists()
    alice.fails("cp", "-", "c:/var", data=tar_of(lambda tar: add_file(tar, "../../etc/hopped", b"x")))
    assert not Path("/etc/hopped").exists()
    assert "no-such" in alice.fails("cp", "c:/no-such", "-")
    alice("rm", "-f", "c")
    alice("image", "rm", "links")


def test_a_volume_behind_a_link_stays_in_the_container(alice: Person) -> None:
    image = busybox_tar(extra=lambda tar: add_link(tar, "data", "/../../../../etc"))
    alice("image", "import", "-", "links", data=image)
    done = alice.give(
        "run", "--rm", "-v", "v:/data/inner", "links", "sh", "-c", "ls -d /etc/inner && mount | grep inner"
    )
    assert done.code in (0, 125), done
    assert not Path("/etc/inner").exists()
    alice("image", "rm", "links")


def test_networks_are_checked_before_they_are_made(host: Host, alice: Person) -> None:
    listed = alice("network", "ls", "-q")
    for words in (
        ("n", "--subnet", "nonsense"), ("n", "--subnet", "10.213.0.0/31"), ("bad/name",), ("host",), ("default",),
        ("n", "--subnet", "127.0.0.0/8"),
    ):  # fmt: skip
        assert "insula: cannot" in alice.fails("network", "create", *words), words
    alice("network", "create", "n", "--subnet", "10.213.50.0/24")
    status, answer = host.root.ask(
        "POST", "/v1/networks", body=b'{"name": "m", "subnet": "10.213.50.128/25"}'
    )
    assert (status, answer["error"]["code"]) == (409, "subnet_overlaps")
    alice("network", "rm", "n")
    assert alice("network", "ls", "-q") == listed


def test_what_is_not_running_says_how_to_start_it(alice: Person) -> None:
    alice("create", "--name", "web", "box", "true")
    for words in (("kill", "web"), ("trace", "web")):
        said = alice.fails(*words)
        assert "container `web` is not running: it is created" in said
        assert "hint: insula start web" in said


def test_a_wrong_field_of_a_body_is_named(alice: Person) -> None:
    status, said = alice.ask("POST", "/v1/tokens", body=b'{"scopes": ["foo"]}')
    assert (status, said["error"]["message"]) == (400, "cannot use `scopes[0]`: invalid enum value 'foo'")
    status, said = alice.ask("POST", "/v1/tokens", body=b"[]")
    assert (status, said["error"]["message"]) == (400, "cannot read the body: expected `object`, got `array`")


def test_a_trace_of_what_is_never_told_is_refused(alice: Person) -> None:
    alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    assert "cannot trace call `opennat`" in alice.fails("trace", "-c", "opennat", "web")
    assert "cannot trace error `ENOTHING`" in alice.fails("trace", "-e", "ENOTHING", "web")
    assert "cannot trace kinds `files`" in alice.fails("trace", "-k", "files", "web")

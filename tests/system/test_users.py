# SPDX-License-Identifier: Apache-2.0
"""Users of a real host: accounts that change hands, groups, roles, tokens, users of other machines."""

import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from accounts import STAFF_ID, AccountsHost, people_restored_after
from hosted import ALICE_UID, BOB_UID, Person
from insula.client.http import Client
from insula.model.errors import OperationNotFound
from searched import files_holding

HOST_KIND = AccountsHost


@pytest.fixture
def here(host: hosted.Host) -> Iterator[AccountsHost]:
    """The host with its two people as they were."""
    yield from people_restored_after(host)


def who(person: Person) -> dict[str, object]:
    found: dict[str, object] = person.json("whoami", "--format", "json")
    return found


# accounts


def test_a_user_is_its_account_and_its_own_tenant(here: AccountsHost) -> None:
    assert {key: who(here.alice)[key] for key in ("name", "tenant", "role", "kind")} == {
        "name": "alice", "tenant": "alice", "role": "user", "kind": "unix",
    }  # fmt: skip
    assert who(here.root)["role"] == "admin"


def test_who_gets_the_name_of_a_deleted_account_does_not_get_its_things(here: AccountsHost) -> None:
    here.alice("run", "-d", "--name", "secret", "box", "sleep", "1000")
    here.accounts = {"alice": BOB_UID}  # alice was deleted, and bob's uid is called so now
    here.write_accounts()
    assert "cannot tell who" in here.bob.fails("ps", "-a")
    here.accounts = {"bob": ALICE_UID}  # and the other way: alice's uid was given to bob
    here.write_accounts()
    assert "cannot tell who" in here.alice.fails("ps", "-a")
    here.accounts = {}  # and an account that is gone, while its processes live
    here.write_accounts()
    assert "cannot tell who" in here.alice.fails("ps", "-a")
    here.accounts = {"alice": ALICE_UID}
    here.write_accounts()
    assert "secret" in here.alice("ps")


def test_an_admin_says_that_it_is_the_same_one_or_another(here: AccountsHost) -> None:
    here.alice("volume", "create", "kept")
    here.accounts = {"alice": BOB_UID}
    here.write_accounts()
    here.root("user", "rm", "bob")
    assert "before, now it is" in here.root.fails("user", "add", "alice")
    here.root("user", "add", "alice", "--tenant", "other")
    assert who(here.bob)["tenant"] == "other"
    here.root("user", "set", "alice", "--tenant", "alice")
    assert "kept" in here.bob("volume", "ls")


def test_a_removed_user_may_nothing_until_it_is_added_again(here: AccountsHost) -> None:
    here.bob("volume", "create", "mine")
    token = here.bob("token", "create")
    here.root("user", "rm", "bob")
    assert "its right has ended" in here.bob.fails("volume", "ls")
    assert "cannot" in here.alice.host.remote("ps", INSULA_TOKEN=token, INSULA_PIN=pin(here)).err
    here.root("user", "add", "bob")
    assert "mine" in here.bob("volume", "ls")
    assert here.bob.json("token", "ls", "--format", "json") == []


# groups and roles


def test_a_group_shares_a_tenant_and_loses_it_with_the_next_request(here: AccountsHost) -> None:
    here.groups = {"staff": (STAFF_ID, ["alice"])}
    here.write_accounts()
    here.root("user", "add", "@staff", "--tenant", "web", "--role", "operator")
    assert who(here.alice)["tenant"] == "alice", "the connection was made without the group"
    command = [str(here.program), "-H", f"unix://{here.socket_path}", "whoami", "--format", "json"]

    def with_group() -> str:
        done = subprocess.run(
            command, user=ALICE_UID, group=hosted.GROUP_ID, extra_groups=[STAFF_ID], cwd="/", env={"PATH": "/usr/bin"},
            capture_output=True, text=True, check=True, timeout=hosted.DEADLINE_S,
        )  # fmt: skip
        return done.stdout

    assert '"web"' in with_group()
    assert '"operator"' in with_group()
    here.groups = {"staff": (STAFF_ID, [])}
    here.write_accounts()
    assert '"web"' not in with_group(), "the process still has the group, the user database does not"
    here.groups = {"games": (STAFF_ID, ["alice"])}
    here.write_accounts()
    assert '"web"' not in with_group(), "the gid is another group's now"


def test_two_users_of_one_tenant_work_with_the_same_things(here: AccountsHost) -> None:
    here.root("user", "set", "bob", "--tenant", "alice")
    here.alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    assert here.bob("exec", "web", "echo", "hi") == "hi"
    here.root("user", "set", "bob", "--role", "viewer")
    assert "web" in here.bob("ps")
    assert "needs the right `enter`" in here.bob.fails("exec", "web", "true", code=125)
    assert "needs the right `control`" in here.bob.fails("stop", "web")
    here.root("user", "set", "bob", "--tenant", "bob")
    assert "no such container" in here.bob.fails("inspect", "web")


def test_an_operator_sees_and_stops_everybodys_containers_and_enters_none(here: AccountsHost) -> None:
    here.alice("run", "-d", "--name", "web", "box", "sleep", "1000")
    here.root("user", "set", "bob", "--role", "operator")
    assert "web" in here.bob("ps", "--all-tenants")
    for words in (("exec", "web", "true"), ("run", "box", "true")):
        assert "needs the right" in here.bob.fails("--tenant", "alice", *words, code=125)
    for words in (("logs", "web"), ("rm", "-f", "web"), ("cp", "web:/etc/hostname", "-")):
        assert "needs the right" in here.bob.fails("--tenant", "alice", *words)
    for tenant in ("alice", "*"):
        assert "needs the right `logs`" in here.bob.fails("--tenant", tenant, "audit", "ls")
    assert "needs the right `admin`" in here.bob.fails("user", "ls")
    here.bob("--tenant", "alice", "pause", "web")
    here.bob("--tenant", "alice", "unpause", "web")
    here.bob("--tenant", "alice", "kill", "web")


def tenants(here: AccountsHost) -> list[str]:
    return [each["name"] for each in here.root.json("tenant", "ls", "--format", "json")]


def test_looking_at_a_tenant_that_is_not_there_makes_none(here: AccountsHost) -> None:
    here.root("user", "set", "bob", "--role", "operator")
    before = tenants(here)
    for person in (here.root, here.bob):
        for name, status in (("nobody-there", 404), ("*", 404), ("../x", 400)):
            assert person.ask("GET", f"/v1/tenants/~?tenant={name}")[0] == status, (person.name, name)
    for method, path, body in (
        ("POST", "/v1/containers", {"image": "box"}),
        ("POST", "/v1/volumes", {"name": "v"}),
        ("PUT", "/v1/profiles/p", {}),
    ):
        assert here.root.ask(method, f"{path}?tenant=../x", body=json.dumps(body).encode())[0] == 400, path
    assert tenants(here) == before
    assert here.bob.ask("GET", "/v1/tenants/~")[0] == 200


def test_an_admin_makes_a_tenant_by_what_is_made_for_it(here: AccountsHost) -> None:
    here.root("--tenant", "fresh", "image", "import", "-", "box", data=hosted.busybox_tar())
    here.root("--tenant", "fresh", "create", "--name", "web", "box", "true")
    assert "fresh" in tenants(here)
    here.root("--tenant", "fresh", "rm", "web")
    here.root("--tenant", "fresh", "image", "rm", "box")


# tokens


def test_a_token_for_one_container_sees_no_other(here: AccountsHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("web", "db"):
        here.alice("run", "-d", "--name", name, "box", "sleep", "1000")
    token = here.alice("token", "create", "--scope", "read,control,enter", "--container", "web")
    environment = {"PATH": "/usr/bin", "INSULA_TOKEN": token}

    def give(*words: str) -> tuple[int, bytes]:
        with here.bob.begin(*words, env=environment) as process:
            out, err = process.communicate(timeout=hosted.DEADLINE_S)
        return process.returncode, out + err

    assert give("exec", "web", "echo", "hi") == (0, b"hi\n")
    there = give("exec", "db", "true")
    nowhere = give("exec", "xx", "true")
    assert there[0] == nowhere[0] != 0
    assert there[1].replace(b"db", b"xx") == nowhere[1], "another container and none are told alike"
    for words in (
        ("ps",),
        ("volume", "ls"),
        ("run", "box", "true"),
        ("token", "create"),
        ("operation", "ls"),
    ):
        assert give(*words)[0] != 0, words
    token_for_operations = here.alice("token", "create", "--scope", "read,checkpoint", "--container", "web")
    environment["INSULA_TOKEN"] = token_for_operations
    done = give("checkpoint", "create", "--leave-running", "web")
    assert done[0] == 0, done
    here.alice("checkpoint", "create", "--leave-running", "db")
    mine, theirs = (
        next(
            each["id"]
            for each in here.alice.json("operation", "ls", "--format", "json")
            if each["subject"] == name
        )
        for name in ("web", "db")
    )
    monkeypatch.setenv("INSULA_TOKEN", token_for_operations)
    client = Client(f"unix://{here.socket_path}")
    assert client.get(f"/v1/operations/{mine}")["subject"] == "web"
    with pytest.raises(OperationNotFound):
        client.get(f"/v1/operations/{theirs}")
    environment["INSULA_TOKEN"] = token
    here.alice("rename", "web", "old")
    here.alice("rename", "db", "web")
    assert give("exec", "web", "true")[0] != 0, "the token is for the container, not for its name"
    assert give("exec", "old", "true")[0] == 0


def test_a_token_is_in_no_file_of_the_hosts(here: AccountsHost) -> None:
    token = here.alice("token", "create", "--label", "ci")
    secret = token.rpartition("_")[2].encode()
    environment = {"PATH": "/usr/bin", "INSULA_TOKEN": token}
    with here.bob.begin("ps", env=environment) as process:
        assert process.wait(hosted.DEADLINE_S) == 0
    with here.bob.begin("ps", env={**environment, "INSULA_TOKEN": token[:-1]}) as process:
        assert process.wait(hosted.DEADLINE_S) == 1
    assert [
        each for each in files_holding(here.folder, secret[:30]) if not each.endswith((".pyc", ".py"))
    ] == []
    (record,) = [
        each for each in here.alice.json("token", "ls", "--format", "json") if each.get("label") == "ci"
    ]
    assert "digest" not in record


def test_nobody_makes_a_token_for_more_than_it_may(here: AccountsHost) -> None:
    assert "do not have that right" in here.alice.fails("token", "create", "--scope", "admin")
    for scope in ("peer", "open", "token", "all"):
        here.alice.fails("token", "create", "--scope", scope, code=125)
        wish = json.dumps({"scopes": [scope], "expires_s": 60})
        assert here.alice.ask("POST", "/v1/tokens", body=wish.encode())[0] in (400, 403)
    here.alice.fails("token", "create", "--scope", "")
    here.alice.fails("token", "create", "--expires", "400d", code=125)
    long = json.dumps({"scopes": ["read"], "expires_s": 400 * 86400})
    assert here.alice.ask("POST", "/v1/tokens", body=long.encode())[0] == 400
    here.alice.fails("--tenant", "bob", "token", "create")
    here.alice.fails("token", "create", "--container", "none")
    mine = here.alice("token", "create").split("_")[1]
    assert "cannot find token" in here.bob.fails("token", "rm", mine)
    assert here.bob.json("token", "ls", "--format", "json") == []


# users of other machines


def pin(here: AccountsHost) -> str:
    pem = subprocess.run(
        ["openssl", "x509", "-in", f"{here.folder}/state/pki/host.crt", "-noout", "-fingerprint", "-sha256"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return pem.partition("=")[2].strip().replace(":", "").lower()


@pytest.fixture
def anna(here: AccountsHost) -> Iterator[Path]:
    """The identity of a remote user."""
    path = here.folder / "anna.pem"
    here.root("user", "add", "anna", "--remote", "-o", str(path))
    yield path
    path.unlink()


def test_a_remote_user_works_as_a_local_one(here: AccountsHost, anna: Path) -> None:
    def give(*words: str) -> str:
        done = here.remote(*words, identity=anna)
        assert done.code == 0, (words, done)
        return done.out

    here.root("--tenant", "anna", "image", "import", "-", "box", data=hosted.busybox_tar())
    give("run", "-d", "--name", "web", "box", "sh", "-c", "echo said; sleep 1000")
    assert "web" in give("ps")
    assert give("exec", "web", "sh", "-c", "echo hi") == "hi"
    assert give("logs", "web") == "said"
    assert here.remote("exec", "web", "sh", "-c", "exit 7", identity=anna).code == 7
    assert "web" not in here.alice("ps")
    assert here.remote("user", "ls", identity=anna).code == 1


def test_a_remote_user_that_was_removed_is_nobody_at_once(here: AccountsHost, anna: Path) -> None:
    assert here.remote("ps", identity=anna).code == 0
    here.root("user", "rm", "anna")
    done = here.remote("ps", identity=anna)
    assert (done.code, "cannot tell who calls" in done.err) == (1, True)


def test_a_token_is_taken_over_tls_from_who_has_no_certificate(here: AccountsHost) -> None:
    token = here.alice("token", "create")
    assert here.remote("ps", INSULA_TOKEN=token, INSULA_PIN=pin(here)).code == 0
    assert here.remote("ps", INSULA_PIN=pin(here)).code == 1
    assert "another certificate" in here.remote("ps", INSULA_TOKEN=token, INSULA_PIN="0" * 64).err
    assert "nothing tells its certificate" in here.remote("ps", INSULA_TOKEN=token).err


def test_an_identity_that_others_may_read_is_not_used(here: AccountsHost, anna: Path) -> None:
    anna.chmod(0o644)
    assert "others may read the key" in here.remote("ps", identity=anna).err


# certificates that are not what they should be


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def leaf(
    folder: Path,
    name: str,
    *,
    authority: tuple[Path, Path] | None = None,
    days: str = "1",
    usage: str = "clientAuth",
) -> Path:
    """Make a certificate called as anna, signed by an authority or by itself.  Returns: key and certificate in a file."""
    (folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\nbasicConstraints=critical,CA:FALSE\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        folder, "req", "-new", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=anna"
    )
    signer = (
        ("-signkey", f"{name}.key")
        if authority is None
        else ("-CA", str(authority[1]), "-CAkey", str(authority[0]), "-CAcreateserial")
    )
    openssl(
        folder,
        "x509",
        "-req",
        "-in",
        f"{name}.csr",
        "-out",
        f"{name}.crt",
        "-days",
        days,
        "-extfile",
        f"{name}.ext",
        *signer,
    )
    both = folder / f"{name}.pem"
    both.write_bytes((folder / f"{name}.key").read_bytes() + (folder / f"{name}.crt").read_bytes())
    return both


def served(here: AccountsHost, chain: Path | None, *, least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
    """Ask for the containers with a certificate.  Returns: the status, or `refused` if TLS does not let us in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if least is not ssl.TLSVersion.TLSv1_3:
        context.maximum_version = least
    if chain is not None:
        context.load_cert_chain(chain)
    with hosted.namespace_entered(here.network):
        plain = socket.create_connection(("127.0.0.1", 7461), timeout=hosted.DEADLINE_S)
    try:
        with context.wrap_socket(plain) as secured:
            secured.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = secured.recv(65536)
            return answer.split(b" ")[1].decode() if answer else "refused"
    except (ssl.SSLError, ConnectionError):
        return "refused"
    finally:
        plain.close()


def test_only_the_pinned_certificate_is_the_user(here: AccountsHost, anna: Path, tmp_path: Path) -> None:
    assert served(here, anna) == "200"
    assert served(here, None) == "401", "no certificate: nobody"
    pki = here.folder / "state/pki"
    own = (pki / "users.key", pki / "users.crt")
    openssl(tmp_path, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=insula users", "-days", "1")  # fmt: skip
    other = (tmp_path / "ca.key", tmp_path / "ca.crt")
    assert served(here, leaf(tmp_path, "same-name", authority=own)) == "401", "our authority, not the pin"
    for name, chain in (
        ("another authority of the same name", leaf(tmp_path, "other", authority=other)),
        ("signed by itself", leaf(tmp_path, "self")),
        ("for servers", leaf(tmp_path, "server", authority=own, usage="serverAuth")),
        ("over", leaf(tmp_path, "over", authority=own, days="-1")),
    ):
        assert served(here, chain) == "refused", name


def test_older_tls_is_not_spoken(here: AccountsHost, anna: Path) -> None:
    assert served(here, anna, least=ssl.TLSVersion.TLSv1_2) == "refused"


def test_a_users_certificate_is_no_hosts(here: AccountsHost, anna: Path) -> None:
    """Neither as a server, nor for a migration, nor for what only hosts ask."""
    status, _ = here.root.ask("GET", "/v1/version")
    assert status == 200
    done = here.remote("host", "token", identity=anna)
    assert "needs the right `admin`" in done.err
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(anna)
    context.set_alpn_protocols(["insula-migration/1", "insula-migration/2"])
    with hosted.namespace_entered(here.network):
        plain = socket.create_connection(("127.0.0.1", 7461), timeout=hosted.DEADLINE_S)
    with plain, context.wrap_socket(plain) as secured:
        secured.settimeout(hosted.DEADLINE_S)
        said = secured.recv(65536)
    assert b"welcome" not in said.lower()


def test_sessions_are_not_taken_up_again(here: AccountsHost, anna: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(anna)
    with hosted.namespace_entered(here.network):
        plain = socket.create_connection(("127.0.0.1", 7461), timeout=hosted.DEADLINE_S)
    with plain, context.wrap_socket(plain) as secured:
        secured.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        secured.recv(65536)
        assert secured.session is None or not secured.session.has_ticket


def test_the_key_of_the_authority_is_roots_alone(here: AccountsHost, anna: Path) -> None:
    for name in ("users.key", "host.key"):
        assert os.stat(here.folder / "state/pki" / name).st_mode & 0o077 == 0
    assert os.stat(anna).st_mode & 0o077 == 0

# SPDX-License-Identifier: Apache-2.0
"""`insula user`, `token`, `whoami`, `policy` and the global options: what is asked of insulad, and what is shown."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import Double, serve

from insula.cli.commands import token
from insula.cli.main import main
from insula.client import tls
from insula.model.errors import BadRequest
from insula.model.users import MAX_TOKEN_S
from insula.tenant.check import SCOPES


def give(double: Double, *words: str) -> int:
    return main(["-H", double.host, *words])


def body(double: Double) -> bytes:
    return double.seen[-1].body


def test_a_user_is_added_as_it_is_wished(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/users"] = (201, {}, {"user": {}})
        words = ("user", "add", "@devs", "--tenant", "web", "--role", "operator", "--expires", "2h")
        assert give(double, *words) == 0
        assert body(double) == b'{"name": "@devs", "tenant": "web", "role": "operator", "expires_s": 7200}'


def test_an_identity_is_written_for_its_owner_only_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "anna.pem"
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/users"] = (201, {}, {"user": {}, "identity": "KEY\n"})
        assert give(double, "user", "add", "anna", "--remote", "-o", str(path)) == 0
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("KEY\n", 0o600)
        assert give(double, "user", "add", "anna", "--remote", "-o", str(path)) == 1
        assert len(double.seen) == 1, "nothing was asked for that could not be kept"
        assert give(double, "user", "add", "anna", "--remote") == 0
    assert capsys.readouterr().out == "KEY\n"


def test_a_refused_user_leaves_no_file(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/users"] = (409, {}, {"error": {"code": "name_taken", "message": "cannot"}})
        assert give(double, "user", "add", "anna", "--remote", "-o", str(tmp_path / "anna.pem")) == 1
    assert not (tmp_path / "anna.pem").exists()


def test_a_change_says_what_changes(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["PATCH /v1/users/bob"] = (200, {}, {})
        for words, wanted in (
            (("--role", "viewer"), b'{"role": "viewer"}'),
            (("--rebind",), b'{"rebind": true}'),
            (("--by-groups",), b'{"by_groups": true}'),
        ):
            assert give(double, "user", "set", "bob", *words) == 0
            assert body(double) == wanted
        assert give(double, "user", "set", "bob") == 1


def test_a_token_is_printed_once_and_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/tokens"] = (201, {}, {"token": {}, "secret": "insula_x"})
        assert (
            give(double, "token", "create", "--scope", "read, control", "--expires", "1d", "-c", "web") == 0
        )
        assert b'"scopes": ["read", "control"], "expires_s": 86400, "container": "web"' in body(double)
    assert capsys.readouterr().out == "insula_x\n"


def test_the_tenant_that_is_meant_is_asked_for(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, [])
        give(double, "--tenant", "web", "ps")
        give(double, "--tenant=web", "ps", "--all-tenants")
    assert [each.target.partition("?")[2] for each in double.seen] == ["tenant=web", "tenant=%2A"]


def test_a_token_of_the_environment_is_shown_in_the_header_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSULA_TOKEN", "insula_secret")
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, [])
        give(double, "ps")
        assert double.seen[0].headers["authorization"] == "Bearer insula_secret"
        assert "secret" not in double.seen[0].target


def test_who_one_is_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "name": "anna", "tenant": "web", "kind": "token", "role": "user", "actions": ["open", "read"], "everywhere": [],
        "uid": None, "token": "0123", "container": "c" * 64,
    }  # fmt: skip
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/whoami"] = (200, {}, found)
        assert give(double, "whoami") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["name:", "anna"] in lines
    assert ["may:", "open, read"] in lines
    assert ["container:", "cccccccccccc"] in lines


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("", 0o600, "does not hold a key"),
        (KEY + CERTIFICATE, 0o600, "does not hold a key"),
        (CERTIFICATE + CERTIFICATE, 0o600, "does not hold a key"),
        (KEY + CERTIFICATE + CERTIFICATE, 0o640, "others may read the key"),
        ("\udcff", 0o600, "no text"),
    ],
)
def test_a_file_that_is_no_identity_is_not_used(tmp_path: Path, text: str, mode: int, said: str) -> None:
    path = tmp_path / "id"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)
    with pytest.raises(BadRequest, match=said):
        tls.Identity(str(path))


def test_a_host_is_not_believed_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="nothing tells its certificate"):
        tls.Door("alpha:7443", identity=None, pin="")
    for address in ("alpha", "alpha:", "alpha:0", "alpha:70000", ":7443"):
        with pytest.raises(BadRequest):
            tls.Door(address, identity=None, pin="0" * 64)
    path = tmp_path / "id"
    path.write_text(KEY + CERTIFICATE + CERTIFICATE)
    path.chmod(0o600)
    with pytest.raises(BadRequest, match="nothing tells where it is"):
        tls.Door("", identity=tls.Identity(str(path)), pin="")
    with pytest.raises(BadRequest, match="damaged"):
        tls.Door("alpha:7443", identity=tls.Identity(str(path)), pin="")


def test_a_tenant_is_made_with_limits_or_without(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/tenants"] = (201, {}, {"name": "acme"})
        assert give(double, "tenant", "create", "acme") == 0
        assert body(double) == b'{"name": "acme"}'
        assert give(double, "tenant", "create", "acme", "pids=7") == 0
        assert body(double) == b'{"name": "acme", "limits": {"pids": 7}}'


def test_scopes_and_the_longest_life_of_tokens_are_those_of_insulad() -> None:
    assert set(token.SCOPES) == {str(each) for each in SCOPES}
    assert token.LONGEST_DAYS * 24 * 3600 == MAX_TOKEN_S


@pytest.mark.parametrize(
    ("moved", "said"), [(0, "drained: nothing runs here"), (2, "drained: 2 moved; `insula")]
)
def test_a_drain_says_what_was_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], moved: int, said: str
) -> None:
    operation = {"id": "o", "kind": "drain", "subject": "alpha", "status": "done", "result": {"moved": moved}}
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/host/drain"] = (200, {}, operation)
        double.answers["GET /v1/operations/o"] = (200, {}, operation)
        assert give(double, "drain") == 0
    assert capsys.readouterr().out.startswith(said)

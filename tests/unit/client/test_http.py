# SPDX-License-Identifier: Apache-2.0
"""The HTTP client against a real server on a unix socket."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from daemon_double import Exchange, serve

from insula.client import operations
from insula.client.http import Client, quote, socket_path, target
from insula.model.errors import BadRequest, ContainerNotFound, DaemonUnreachable, NotFound, PortInUse


def chunked(*parts: bytes, ends: bool = True) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + (b"0\r\n\r\n" if ends else b"")


STREAM = {"Transfer-Encoding": "chunked"}


def test_a_json_answer_is_decoded_and_query_and_body_arrive(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /v1/things"] = (201, {}, {"id": "ä"})
        answer = Client(double.host).call("POST", "/v1/things", query={"a": "b&c d", "no": ""}, body={"x": 1})
    assert answer == {"id": "ä"}
    assert (double.seen[0].target, double.seen[0].body) == ("/v1/things?a=b%26c%20d", b'{"x": 1}')


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_is_none(tmp_path: Path, status: int) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["POST /x"] = (status, {}, None)
        assert Client(double.host).call("POST", "/x") is None


def test_an_error_becomes_its_own_class(tmp_path: Path) -> None:
    body = {
        "error": {"code": "container_not_found", "message": "cannot find `web`", "hint": "see `insula ps -a`"}
    }
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers/web"] = (404, {}, body)
        with pytest.raises(ContainerNotFound) as caught:
            Client(double.host).get("/v1/containers/web")
    assert (caught.value.message, caught.value.hint) == ("cannot find `web`", "see `insula ps -a`")


def test_lines_come_from_chunks_cut_anywhere(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /x"] = (200, STREAM, chunked(b'{"a":', b'1}\n{"a"', b":2}\n", b'{"a":3}'))
        assert list(Client(double.host).follow("/x")) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize(
    ("headers", "body"), [(STREAM, chunked(b"[1", ends=False)), ({"Content-Length": "9"}, b"[1")]
)
def test_an_answer_that_breaks_off_is_a_lost_connection(
    tmp_path: Path, headers: dict[str, str], body: bytes
) -> None:
    def broken(exchange: Exchange) -> None:
        lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        exchange.writer.write(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body)

    with serve(tmp_path / "s") as double:
        double.answers["GET /x"] = broken
        with pytest.raises(DaemonUnreachable, match="lost the connection"):
            Client(double.host).get("/x")


def test_a_streamed_body_arrives_whole(tmp_path: Path) -> None:
    parts = [os.urandom(70_000), b"", b"end"]
    with serve(tmp_path / "s") as double:
        double.answers["PUT /x"] = (204, {}, None)
        Client(double.host).upload("PUT", "/x", query={"path": "/a/b"}, parts=parts)
    assert double.seen[0].body == b"".join(parts)
    assert double.seen[0].target == "/x?path=%2Fa%2Fb"


def test_no_socket_says_how_to_start_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable) as caught:
        Client(f"unix://{tmp_path}/none").get("/v1/version")
    assert "no such file" in caught.value.message
    assert "insula daemon" in caught.value.hint


def test_the_own_door_is_tried_first_and_one_that_nobody_listens_at_is_passed_over(tmp_path: Path) -> None:
    own = tmp_path / f"users/{os.geteuid()}.sock"
    own.parent.mkdir()
    with serve(tmp_path / "api.sock") as everybodys:
        everybodys.answers["GET /x"] = (200, {}, "everybody's")
        assert Client(everybodys.host).get("/x") == "everybody's"
        with serve(own) as double:
            double.answers["GET /x"] = (200, {}, "own")
            assert Client(everybodys.host).get("/x") == "own"
        assert own.exists()
        assert Client(everybodys.host).get("/x") == "everybody's"


def test_host_comes_from_option_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_HOST", "unix:///env.sock")
    assert Client().path == "/env.sock"
    assert Client("/own.sock").path == "/own.sock"
    monkeypatch.delenv("INSULA_HOST")
    assert Client().path == "/run/insula/api.sock"
    with pytest.raises(BadRequest, match="neither a unix socket nor TLS"):
        socket_path("tcp://1.2.3.4")


def test_quote_keeps_only_unreserved_characters() -> None:
    assert quote("a/b:1 ü~") == "a%2Fb%3A1%20%C3%BC~"
    assert target("/x", {"a": ""}) == "/x"


def test_following_an_operation_ends_with_its_last_record(tmp_path: Path) -> None:
    records = b'{"id":"1","status":"running"}\n{"id":"1","status":"failed","error":{"code":"port_in_use","message":"m"}}\n'
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/operations/1/follow"] = (200, STREAM, chunked(records))
        seen = list(operations.follow(Client(double.host), {"id": "1", "status": "running"}))
    assert [record["status"] for record in seen] == ["running", "running", "failed"]
    assert isinstance(operations.failure(seen[-1]), PortInUse)


def test_following_an_unfinished_operation_that_breaks_off_tells_where_to_look(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/operations/1/follow"] = (
            200,
            STREAM,
            chunked(b'{"id":"1","status":"running"}\n'),
        )
        with pytest.raises(DaemonUnreachable, match="goes on"):
            list(operations.follow(Client(double.host), {"id": "1", "status": "running"}))


def test_not_found_is_for_unknown_paths(tmp_path: Path) -> None:
    with serve(tmp_path / "s") as double, pytest.raises(NotFound):
        Client(double.host).get("/nothing")

# SPDX-License-Identifier: Apache-2.0
"""The one HTTP client: HTTP/1.1 over insulad's unix socket, or over TLS (`tls.py`), one connection a request.

Stands on `_socket` alone: `http.client` costs 20 ms of import, `socket` 8 ms, and each `insula ps` would pay them.
What the daemon answers is decoded JSON (`Json`): the Structs of `model/record.py` cost 45 ms.  Out of scope: redirects,
proxies.  Source: RFC 9112; docs/api.md.
"""

from __future__ import annotations

import json
import os
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM
from _socket import socket as RawSocket  # noqa: N812

from insula.model.errors import BadRequest, DaemonUnreachable, InsulaError, ProtocolError, from_code

TYPE_CHECKING = False  # typing itself costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from insula.client.tls import Door

    Json = dict[str, Any]
    Query = Mapping[str, str | Sequence[str]]
else:
    Json = dict

DEFAULT_SOCKET = "/run/insula/api.sock"
MAX_HEAD = 64 << 10
MAX_LINE = 16 << 20  # a list of all containers' statistics is one line
READ_SIZE = 256 << 10
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Percent-encode everything but unreserved characters; a name in a path may hold a slash."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in data)


def target(path: str, query: Query | None = None) -> str:
    """Join path and query: of several values of a parameter each by itself.  Empty values are left out."""
    said = {key: [value] if isinstance(value, str) else value for key, value in (query or {}).items()}
    words = "&".join(f"{key}={quote(value)}" for key, values in said.items() for value in values if value)
    return f"{path}?{words}" if words else path


def socket_path(host: str) -> str:
    """Return the path of the socket that `--host` or $INSULA_HOST names.

    Raises: BadRequest.
    """
    if not host:
        return DEFAULT_SOCKET
    path = host.removeprefix("unix://")
    if not path.startswith("/"):
        raise BadRequest(
            f"cannot use host `{host}`: neither a unix socket nor TLS",
            hint="for example unix:///run/insula/api.sock or tls://10.0.0.2:7443",
        )
    return path


class Reader:
    """Buffered reading of one connection."""

    def __init__(self, connection: RawSocket) -> None:
        self._connection = connection
        self._buffer = b""

    def take(self) -> bytes:
        """Return what was read too far: the first frames after an upgrade."""
        rest, self._buffer = self._buffer, b""
        return rest

    def some(self, limit: int = READ_SIZE) -> bytes:
        if not self._buffer:
            return self._connection.recv(limit)
        part, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return part

    def line(self, limit: int) -> bytes:
        """Return a line without its end, or what was left at the end of the connection."""
        parts, length = [], 0
        while True:
            part = self.some()
            before, found, rest = part.partition(b"\n")
            parts.append(before)
            length += len(before)
            if length > limit:
                raise ProtocolError(f"cannot read the answer: a line of more than {limit} bytes")
            if found or not part:
                self._buffer = rest + self._buffer
                return b"".join(parts).removesuffix(b"\r")


class Answer:
    """An HTTP answer whose body is still to be read.  Close it, or use it as a context."""

    def __init__(self, connection: RawSocket) -> None:
        self._connection = connection
        self.reader = Reader(connection)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._read_head()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def detach(self) -> RawSocket:
        """Give the connection away: after an upgrade it is a raw stream."""
        return self._connection

    def _read_head(self) -> None:
        words = self.reader.line(MAX_HEAD).split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise DaemonUnreachable(
                "cannot read the answer of insulad: it closed the connection",
                hint="look into its log, then try again",
            )
        self.status = int(words[1])
        while line := self.reader.line(MAX_HEAD):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes.

        Raises: DaemonUnreachable if the connection ends before the body does.
        """
        if self.status in (101, 204, 304):
            return
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
        elif "content-length" in self.headers:
            yield from self._exactly(int(self.headers["content-length"]))
        else:
            while part := self.reader.some():
                yield part

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            part = self.reader.some(min(count, READ_SIZE))
            if not part:
                raise DaemonUnreachable(
                    "lost the connection to insulad in the middle of an answer", hint="try again"
                )
            count -= len(part)
            yield part

    def _chunked(self) -> Iterator[bytes]:
        while True:
            size = self.reader.line(MAX_HEAD).partition(b";")[0].strip()
            try:
                count = int(size, 16)
            except ValueError:
                raise DaemonUnreachable(
                    "lost the connection to insulad in the middle of an answer", hint="try again"
                ) from None
            if not count:
                return
            yield from self._exactly(count)
            self.reader.line(MAX_HEAD)

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def lines(self) -> Iterator[bytes]:
        """Yield the body's lines, each as soon as it is complete."""
        pending = b""
        for part in self.chunks():
            *complete, pending = (pending + part).split(b"\n")
            yield from complete
            if len(pending) > MAX_LINE:
                raise ProtocolError(f"cannot read the answer: a line of more than {MAX_LINE} bytes")
        if pending:
            yield pending


class Stream:
    """An upgraded connection: frames of `model/stream.py` both ways."""

    def __init__(self, connection: RawSocket, first: bytes) -> None:
        self.connection = connection
        self.first = first

    def close(self) -> None:
        self.connection.close()


TLS = "tls://"


class Client:
    """Speaks to one insulad.

    host: as `--host` gives it; empty: $INSULA_HOST, else the identity's, else the default socket.  identity: a file, empty:
    $INSULA_IDENTITY.  tenant: whose things are meant; empty: the caller's own.  $INSULA_TOKEN is sent along if there is one.
    """

    def __init__(self, host: str = "", *, identity: str = "", tenant: str = "") -> None:
        host = host or os.environ.get("INSULA_HOST", "")
        identity = identity or os.environ.get("INSULA_IDENTITY", "")
        self.tenant = tenant
        self._token = os.environ.get("INSULA_TOKEN", "")
        self._door: Door | None = None
        self.path = ""
        if host.startswith(TLS) or (identity and not host):
            from insula.client import tls

            known = tls.Identity(identity) if identity else None
            pin = os.environ.get("INSULA_PIN", "")
            self._door = tls.Door(host.removeprefix(TLS), identity=known, pin=pin)
        else:
            self.path = socket_path(host)

    def get(self, path: str, query: Query | None = None) -> Any:
        """Return the decoded answer of a GET."""
        return self.call("GET", path, query=query)

    def call(self, method: str, path: str, *, query: Query | None = None, body: object = None) -> Any:
        """Send a request, return the decoded answer, None if it has no body.

        Raises: the InsulaError that the daemon named; DaemonUnreachable.
        """
        with self.open(method, path, query=query, body=body) as answer:
            data = answer.body()
        return json.loads(data) if data else None

    def follow(self, path: str, query: Query | None = None) -> Iterator[Any]:
        """Yield the JSON values of a streamed answer, one a line, as they come."""
        with self.open("GET", path, query=query) as answer:
            for line in answer.lines():
                if line.strip():
                    yield json.loads(line)

    def open(self, method: str, path: str, *, query: Query | None = None, body: object = None) -> Answer:
        """Send a request and return the answer with its body unread.  A body of bytes is JSON already."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = self._head(method, path, query=query, length=len(data), is_json=body is not None)
        return self._exchange([head + data])

    def upload(self, method: str, path: str, *, query: Query, parts: Iterable[bytes]) -> Any:
        """Send a body of unknown length (a tar), return the decoded answer."""
        head = self._head(method, path, query=query, length=None, is_json=False)

        def pieces() -> Iterator[bytes]:
            yield head
            for part in parts:
                if part:
                    yield b"%x\r\n%b\r\n" % (len(part), part)
            yield b"0\r\n\r\n"

        with self._exchange(pieces()) as answer:
            data = answer.body()
        return json.loads(data) if data else None

    def upgrade(self, path: str, *, query: Query, body: object = None) -> Stream:
        """POST and take the connection over as a stream of frames."""
        data = b"" if body is None else json.dumps(body).encode()
        head = self._head(
            "POST", path, query=query, length=len(data), is_json=body is not None, upgrade="insula-stream"
        )
        answer = self._exchange([head + data])
        if answer.status != 101:
            answer.close()
            raise ProtocolError(f"cannot attach: insulad answered {answer.status} in place of a stream")
        connection = answer.detach()
        if self._door is not None:
            from insula.client import tls

            connection = tls.plain_end(connection)
        return Stream(connection, answer.reader.take())

    def _head(
        self,
        method: str,
        path: str,
        *,
        query: Query | None,
        length: int | None,
        is_json: bool,
        upgrade: str = "",
    ) -> bytes:
        words = dict(query or {})
        words["tenant"] = words.get("tenant") or self.tenant
        where = target(path, words)
        lines = [f"{method} {where} HTTP/1.1", "Host: insula"]
        if self._token:
            lines.append(f"Authorization: Bearer {self._token}")
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
        if length is None:
            lines.append("Content-Type: application/x-tar")
        if is_json:
            lines.append("Content-Type: application/json")
        lines += [f"Upgrade: {upgrade}", "Connection: Upgrade"] if upgrade else ["Connection: close"]
        return "\r\n".join([*lines, "", ""]).encode("ascii", "replace")

    def _exchange(self, pieces: Iterable[bytes]) -> Answer:
        connection = self._connect()
        try:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused in the middle of the body: the answer tells why
            answer = Answer(connection)
            if answer.status >= 400:
                raise _failure(answer)
        except ConnectionResetError:
            connection.close()
            raise DaemonUnreachable(
                "lost the connection to insulad", hint="look into its log, then try again"
            ) from None
        except OSError as error:
            connection.close()
            if self._door is None:
                raise
            raise self._door.explain(error) from None
        except BaseException:
            connection.close()
            raise
        return answer

    def _connect(self) -> RawSocket:
        if self._door is not None:
            return self._door.connect()
        try:
            return _connected(self._own_path)
        except OSError:  # none yet, or of an insulad that has gone
            pass
        try:
            return _connected(self.path)
        except OSError as error:
            raise _unreachable(self.path, error) from None

    @property
    def _own_path(self) -> str:
        """The socket in whose queue nobody else waits; insulad makes it for whom it has seen (daemon/own_doors.py)."""
        return f"{self.path.removesuffix('/api.sock')}/users/{os.geteuid()}.sock"


def _connected(path: str) -> RawSocket:
    connection = RawSocket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def close_writing(stream: Stream) -> None:
    """Tell the other side that nothing more is sent."""
    stream.connection.shutdown(SHUT_WR)


def _failure(answer: Answer) -> InsulaError:
    data = answer.body()
    answer.close()
    try:
        error = json.loads(data)["error"]
        return from_code(str(error["code"]), str(error["message"]), hint=str(error.get("hint", "")))
    except (ValueError, KeyError, TypeError):
        text = data[:200].decode("utf-8", "replace").strip()
        return ProtocolError(f"cannot understand the answer of insulad: status {answer.status} `{text}`")


def _unreachable(path: str, error: OSError) -> DaemonUnreachable:
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, PermissionError):
        hint = f"be a member of group `{_group(path)}` (`usermod -aG {_group(path)} USER`, log in again), or be root"
    elif isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        hint = "start it as root with `insula daemon`, or name another socket with --host"
    else:
        hint = "name its socket with --host or $INSULA_HOST"
    return DaemonUnreachable(f"cannot reach insulad at `{path}`: {reason}", hint=hint)


def _group(path: str) -> str:
    import grp

    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return "insula"

# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server on a unix socket that answers as docs/api.md says: real sockets, canned answers.

An answer is (status, headers, body) or a function that gets the connection itself (upgrades, odd bodies).
"""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

Raw = Callable[["Exchange"], None]


@dataclass
class Exchange:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    reader: BinaryIO
    writer: BinaryIO


@dataclass
class Double:
    path: Path
    answers: dict[str, Any] = field(default_factory=dict)
    seen: list[Exchange] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"unix://{self.path}"


def _read_body(reader: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return reader.read(int(headers.get("content-length", "0")))
    data = b""
    while size := int(reader.readline(), 16):
        data += reader.read(size)
        reader.readline()
    reader.readline()
    return data


def _handler(double: Double) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method, target, _ = self.rfile.readline().decode().split()
            headers = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            exchange = Exchange(
                method, target, headers, _read_body(self.rfile, headers), self.rfile, self.wfile
            )
            double.seen.append(exchange)
            found = double.answers.get(f"{method} {target.partition('?')[0]}")
            if callable(found):
                found(exchange)
                return
            error = {"error": {"code": "not_found", "message": f"cannot find `{target}`", "hint": ""}}
            status, more, value = found or (404, {}, error)
            data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
            head = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in more.items())]
            if "Transfer-Encoding" not in more:
                head.append(f"Content-Length: {len(data)}")
            self.wfile.write("\r\n".join([*head, "", ""]).encode() + data)

    return Handler


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def serve(path: Path) -> Iterator[Double]:
    double = Double(path)
    with _Server(str(path), _handler(double)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield double
        finally:
            server.shutdown()
            thread.join()

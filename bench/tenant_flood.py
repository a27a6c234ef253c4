# SPDX-License-Identifier: Apache-2.0
"""What the two users of `bench/tenants.py` run on the host, each as a process of its own uid.  Standard library only.

    probe SOCKET PATHS PAUSE_MS     a well-behaved user: one request after the other, a line `AT MS STATUS` each
    flood SOCKET CONNECTIONS own|everybodys
                                    5000 requests a second, on connections that stay and on new ones, at its own door or at
                                    everybody's; what is not answered within 20 ms is given up for another
    read SOCKET PATHS CONNECTIONS   long answers, read to their ends, one after the other on each connection
    bomb SOCKET                     images of 8 GiB of zeros, one after the other

Each ends when its standard input does.  `flood`, `read` and `bomb` say at their end what they were answered.
"""

import json
import os
import select
import selectors
import socket
import sys
import threading
import time
import zlib
from collections import Counter

BOMB_BYTES = 8 << 30
PIECE = bytes(1 << 20)
TIMEOUT_S = 30.0
PATIENCE_S = 0.02
RATE = 5000
"""Requests a second of one process."""


def request(path: str, *, keep: bool) -> bytes:
    words = "keep-alive" if keep else "close"
    return f"GET {path} HTTP/1.1\r\nHost: insula\r\nConnection: {words}\r\n\r\n".encode()


def door(path: str) -> str:
    """Return the socket that insulad has made for this user, if it has: as the client does."""
    own = os.path.join(os.path.dirname(path), "users", f"{os.geteuid()}.sock")
    return own if os.path.exists(own) else path


def is_over(seconds: float = 0.0) -> bool:
    """Tell whether standard input has ended; wait for that so long."""
    return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])


def probe(path: str, targets: list[str], pause_s: float) -> None:
    """Ask at fixed moments; what comes late counts from its moment on."""
    planned, number = time.time(), 0
    while not is_over(planned - time.time()):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(door(path))  # waits while the queue is full, as the CLI does
            connection.settimeout(TIMEOUT_S)
            connection.sendall(request(targets[number % len(targets)], keep=False))
            answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
        status = answer[9:12].decode() or "cut"
        print(f"{planned:.4f} {(time.time() - planned) * 1000:.3f} {status}", flush=True)
        planned, number = max(planned + pause_s, time.time() - pause_s), number + 1


class Flood:
    """Many connections of one user, each asking again as soon as it is answered.

    One is closed and made anew after each tenth answer, and when it has no answer within PATIENCE_S.
    """

    def __init__(self, path: str, connections: int) -> None:
        self._path = path
        self._words = request("/v1/containers", keep=True)
        self._selector = selectors.DefaultSelector()
        self._missing = connections
        self._asked = 0
        self._began = time.monotonic()
        self._since: dict[socket.socket, float] = {}
        self.answers: Counter[str] = Counter()

    def run(self) -> None:
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            self._connect()
            for key, _ in self._selector.select(PATIENCE_S / 2):
                if key.fileobj is sys.stdin:
                    return
                self._read(key.fileobj)  # type: ignore[arg-type]
            self._give_up()

    def _connect(self) -> None:
        while self._missing and self._may_ask():
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                connection.connect(self._path)
                connection.send(self._words)
            except OSError as error:
                self.answers[type(error).__name__] += 1
                connection.close()
                return
            self._selector.register(connection, selectors.EVENT_READ)
            self._since[connection] = time.monotonic()
            self.answers["asked"] += 1
            self._missing -= 1

    def _read(self, connection: socket.socket) -> None:
        try:
            answer = connection.recv(1 << 20)
        except OSError:
            answer = b""
        if answer.startswith(b"HTTP/1.1 "):
            self.answers[answer[9:12].decode()] += 1
        self._asked += 1
        if answer and self._asked % 10 and self._may_ask():
            try:
                connection.send(self._words)
                self._since[connection] = time.monotonic()
                self.answers["asked"] += 1
                return
            except OSError:
                self.answers["cut"] += 1
        self._drop(connection)

    def _may_ask(self) -> bool:
        return self.answers["asked"] < RATE * (time.monotonic() - self._began)

    def _give_up(self) -> None:
        before = time.monotonic() - PATIENCE_S
        for connection in [each for each, since in self._since.items() if since < before]:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._since[connection]
        connection.close()
        self._missing += 1


def read(path: str, targets: list[str], connections: int) -> Counter[str]:
    """Ask for what is long, again and again, on so many connections at once."""
    answers: Counter[str] = Counter()
    ended = threading.Event()

    def ask() -> None:
        number = 0
        while not ended.is_set():
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT_S)
                try:
                    connection.connect(door(path))
                    connection.sendall(request(targets[number % len(targets)], keep=False))
                    answers[connection.recv(65536)[9:12].decode() or "cut"] += 1
                    while piece := connection.recv(1 << 20):
                        answers["bytes"] += len(piece)
                except OSError as error:
                    answers[type(error).__name__] += 1
            number += 1

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for each in threads:
        each.start()
    while not is_over(1.0):
        pass
    ended.set()
    for each in threads:
        each.join()
    return answers


def bomb(path: str) -> Counter[str]:
    """Send compressed zeros as an image, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    header = bytearray(512)
    header[0:4], header[100:107], header[124:135] = b"bomb", b"0000644", b"%011o" % BOMB_BYTES
    header[148:156], header[156:157], header[257:263] = b"        ", b"0", b"ustar\0"
    header[148:155] = b"%06o\0" % sum(header)
    first = packer.compress(bytes(header)) + packer.compress(PIECE) + packer.flush(zlib.Z_SYNC_FLUSH)
    more = packer.compress(PIECE) + packer.flush(zlib.Z_SYNC_FLUSH)
    answers: Counter[str] = Counter()
    while not is_over(0.05):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.connect(path)
                connection.sendall(
                    b"POST /v1/images/import?name=bomb HTTP/1.1\r\nHost: insula\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                connection.sendall(b"%x\r\n%b\r\n" % (len(first), first))
                while not select.select([connection, sys.stdin], [], [], 0)[0]:
                    connection.sendall(b"%x\r\n%b\r\n" % (len(more), more))
            except OSError:
                pass
            try:
                answers[connection.recv(65536)[9:12].decode()] += 1
            except OSError as error:
                answers[type(error).__name__] += 1
    return answers


def main(words: list[str]) -> None:
    match words:
        case ["probe", path, targets, pause_ms]:
            probe(path, targets.split(","), float(pause_ms) / 1000)
        case ["flood", path, connections, which]:
            flood = Flood(door(path) if which == "own" else path, int(connections))
            flood.run()
            print(json.dumps(flood.answers))
        case ["read", path, targets, connections]:
            print(json.dumps(read(path, targets.split(","), int(connections))))
        case ["bomb", path]:
            print(json.dumps(bomb(path)))
        case _:
            sys.exit(f"what is {words}?")


if __name__ == "__main__":
    main(sys.argv[1:])

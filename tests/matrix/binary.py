# SPDX-License-Identifier: Apache-2.0
"""Clients of binary protocols, as much of each as a numbered write needs.

Sources: PostgreSQL "Frontend/Backend Protocol" 3.0; MariaDB "Clients & Utilities: protocol"; MQTT 3.1.1; RFC 1035; Gearman
PROTOCOL.
"""

import select
import socket
import struct
import time

from tests.matrix.wire import SILENCE_S, Connection, Counted, WrongAnswer, same

UDP_RESEND_S = 1.0
"""As resolvers do (RFC 1035, 4.2.1: 2-5 s; today's ask again after 1 s)."""


class Postgres:
    """A row for each number, each its own committed transaction."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        words = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        self._connection.send(struct.pack("!I", len(words) + 4) + words)
        self._rows()
        self._query("CREATE TABLE IF NOT EXISTS numbers (n integer PRIMARY KEY)")

    def _query(self, text: str) -> list[str]:
        words = text.encode() + b"\0"
        self._connection.send(b"Q" + struct.pack("!I", len(words) + 4) + words)
        return self._rows()

    def _rows(self) -> list[str]:
        """Read until the server is ready; returns the first column of each row."""
        found = []
        while True:
            kind, length = struct.unpack("!cI", self._connection.exactly(5))
            body = self._connection.exactly(length - 4)
            if kind == b"E":
                raise ConnectionError(f"PostgreSQL says {body[:200]!r}")
            if kind == b"D":
                size = struct.unpack("!i", body[2:6])[0]
                found.append(body[6 : 6 + size].decode())
            if kind == b"Z":
                return found

    def ask(self, number: int) -> None:
        same(self._query(f"INSERT INTO numbers VALUES ({number}) RETURNING n"), [str(number)])

    def verify(self, total: int) -> None:
        same(self._query("SELECT count(*) FROM numbers"), [str(total)])
        same(self._query("SELECT max(n) FROM numbers"), [str(total)])

    def close(self) -> None:
        self._connection.close()


class MariaDb:
    """A row for each number, each its own committed transaction.  user: one without a password."""

    def __init__(self, address: str, port: int, user: str) -> None:
        self._connection = Connection(address, port)
        self._packet()
        # CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION | CLIENT_PLUGIN_AUTH
        flags = 0x0200 | 0x8000 | 0x80000
        words = struct.pack("<IIB23x", flags, 1 << 24, 33) + user.encode() + b"\0\0mysql_native_password\0"
        self._connection.send(struct.pack("<I", len(words) | 1 << 24) + words)
        self._packet()
        self._query("CREATE TABLE IF NOT EXISTS test.numbers (n integer PRIMARY KEY) ENGINE=InnoDB")

    def _packet(self) -> bytes:
        length = struct.unpack("<I", self._connection.exactly(4))[0] & 0xFFFFFF
        body = self._connection.exactly(length)
        if body[:1] == b"\xff":
            raise ConnectionError(f"MariaDB says {body[3:200]!r}")
        return body

    def _query(self, text: str) -> bytes:
        words = b"\3" + text.encode()
        self._connection.send(struct.pack("<I", len(words)) + words)
        return self._packet()

    def ask(self, number: int) -> None:
        same(self._query(f"INSERT INTO test.numbers VALUES ({number})")[:2], b"\0\1")

    def verify(self, total: int) -> None:
        self._query("SELECT count(*) FROM test.numbers")
        self._packet()  # the column
        self._packet()  # the end of columns
        same(int(self._packet()[1:]), total)
        self._packet()

    def close(self) -> None:
        self._connection.close()


class Mqtt:
    """Publishes numbers with QoS 1 to its own subscription."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._topic = b"numbers"
        self._send(0x10, b"\0\4MQTT\4\2\0\0" + struct.pack("!H", 6) + b"client")
        self._expect(0x20)
        self._send(0x82, b"\0\1" + struct.pack("!H", len(self._topic)) + self._topic + b"\1")
        self._expect(0x90)

    def _send(self, head: int, body: bytes) -> None:
        self._connection.send(bytes([head, len(body)]) + body)

    def _receive(self) -> tuple[int, bytes]:
        head, length = self._connection.exactly(2)
        return head & 0xF0, self._connection.exactly(length)

    def _expect(self, head: int) -> bytes:
        found, body = self._receive()
        if found != head:
            raise ConnectionError(f"got packet {found:#x} instead of {head:#x}")
        return body

    def ask(self, number: int) -> None:
        """Raises: WrongAnswer if another number is delivered, OSError without acknowledgement and delivery."""
        token = struct.pack("!H", number % 65535 + 1)
        body = b"%d" % number
        self._send(0x32, struct.pack("!H", len(self._topic)) + self._topic + token + body)
        wanted = {0x40, 0x30}
        while wanted:
            head, answer = self._receive()
            if head == 0x40:
                same(answer, token)
            elif head == 0x30:
                same(answer[2 + len(self._topic) + 2 :], body)
                self._send(0x40, answer[2 + len(self._topic) :][:2])
            if head not in wanted:
                raise WrongAnswer(f"packet {head:#x} came twice")
            wanted.remove(head)

    def verify(self, total: int) -> None:
        """Nothing more: each was delivered."""

    def close(self) -> None:
        self._connection.close()


class Dns:
    """Asks for an address by UDP, again if there is no answer, as resolvers do.  wanted: the address."""

    def __init__(self, address: str, port: int, wanted: str, zone: str = "test") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((address, port))
        self._wanted, self._zone = socket.inet_aton(wanted), zone
        self.ask(0)

    def ask(self, number: int) -> None:
        token = number % 65536
        labels = [f"n{number}", *self._zone.split(".")]
        name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
        question = struct.pack("!6H", token, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)
        answer = self._exchange(question)
        same(answer[12 : 12 + len(name)].lower(), name)
        same(answer[-4:], self._wanted)

    def _exchange(self, question: bytes) -> bytes:
        end = time.monotonic() + SILENCE_S
        while time.monotonic() < end:
            self._socket.send(question)
            again = time.monotonic() + UDP_RESEND_S
            while (left := again - time.monotonic()) > 0:
                if select.select([self._socket], [], [], left)[0]:
                    answer = self._socket.recv(2048)
                    if answer[:2] == question[:2]:  # an answer to what was asked again may come late
                        return answer
        raise TimeoutError("no answer by UDP")

    def verify(self, total: int) -> None:
        """Nothing was written."""

    def close(self) -> None:
        self._socket.close()


class Gearman:
    """Queues background jobs; their handles are numbered by the server."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._counted = Counted()

    def _exchange(self, kind: int, body: bytes) -> bytes:
        self._connection.send(b"\0REQ" + struct.pack("!II", kind, len(body)) + body)
        magic, _, length = struct.unpack("!4sII", self._connection.exactly(12))
        same(magic, b"\0RES")
        return self._connection.exactly(length)

    def ask(self, number: int) -> None:
        handle = self._exchange(18, b"work\0%d\0%d" % (number, number))  # SUBMIT_JOB_BG
        self._counted.take(int(handle.rpartition(b":")[2]))

    def verify(self, total: int) -> None:
        self._connection.send(b"status\n")
        queued = 0
        while (line := self._connection.line()) != b".":
            queued = int(line.split(b"\t")[1])
        same(queued, total)

    def close(self) -> None:
        self._connection.close()

# SPDX-License-Identifier: Apache-2.0
"""Clients that speak text: lines, HTTP, Redis, memcached, mail, …

Each asks numbered things, so that a lost acknowledged write, or one done twice, shows.
"""

import base64
import json
import re
import subprocess
import sys

from tests.matrix.wire import SHARED, SILENCE_S, Connection, Counted, WrongAnswer, same


class Lines:
    """Sends a line, reads until one matches.

    template: the line, with `{n}` for the number.  pattern: its group is the number; by default the program's own count.
    how: `counted` (the program counts for each connection), `shared` (over all) or `numbered` (it gives back ours).
    """

    def __init__(
        self, address: str, port: int, template: str = "count", pattern: str = r"(\d+)", how: str = "counted"
    ) -> None:
        self._connection = self._connect(address, port)
        self._template, self._pattern = template, pattern.encode()
        self._counted = {"counted": Counted(), "shared": SHARED, "numbered": None}[how]

    def _connect(self, address: str, port: int) -> Connection:
        return Connection(address, port)

    def ask(self, number: int) -> None:
        self._connection.send(self._template.replace("{n}", str(number)).encode() + b"\n")
        answer = int(self._connection.until(self._pattern)[1])
        if self._counted:
            self._counted.take(answer)
        else:
            same(answer, number)

    def verify(self, total: int) -> None:
        """Nothing more: each answer was the proof of all before it."""

    def close(self) -> None:
        self._connection.close()


class Stream:
    """Only reads: the program says 1, 2, 3, … as fast as it is listened to."""

    CHUNK = 200

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._counted = Counted()

    def ask(self, number: int) -> None:
        for _ in range(self.CHUNK):
            self._counted.take(int(self._connection.line()))

    def verify(self, total: int) -> None:
        """Nothing more."""

    def close(self) -> None:
        self._connection.close()


class _Pipes(Connection):
    """The standard input and output of a process."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, bufsize=0
        )
        self._rest = b""

    def send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)

    def _more(self) -> None:
        assert self._process.stdout
        data = self._process.stdout.read(1 << 16)
        if not data:
            raise ConnectionError("ssh ended")
        self._rest += data

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Ssh(Lines):
    """Lines through the real ssh.  key: the file of a private key; command: what runs there."""

    def __init__(self, address: str, port: int, key: str, command: str) -> None:
        self._key, self._command = key, command
        super().__init__(address, port)
        self.ask(1)

    def _connect(self, address: str, port: int) -> Connection:
        Connection(address, port).close()
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
        options += ["LogLevel=ERROR", f"ConnectTimeout={SILENCE_S:.0f}"]
        words = [word for option in options for word in ("-o", option)]
        where = ["-p", str(port), "-i", self._key, f"root@{address}"]
        return _Pipes("ssh", "-F", "none", *words, *where, self._command)


class Http:
    """HTTP/1.1 on one kept connection.

    counted PATH [PATTERN]: the body, or the pattern's group in it, is a number that the program counts over all connections.
    same PATH TEXT: always the same body.   put PATH: a file for each number, all read again at the end.
    etcd: a key for each number by its JSON gateway, whose revision counts up.
    """

    def __init__(self, address: str, port: int, how: str, path: str = "/", pattern: str = r"(\d+)") -> None:
        self._connection = Connection(address, port)
        self._how, self._path, self._pattern = how, path, pattern
        self._counted = SHARED
        self._host = f"{address}:{port}".encode()

    def request(self, verb: str, path: str, *, body: bytes = b"") -> tuple[int, bytes]:
        length = b"Content-Length: %d\r\n" % len(body) if verb != "GET" else b""
        head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (verb.encode(), path.encode(), self._host, length)
        self._connection.send(head + body)
        status = int(self._connection.expect(b"HTTP/1.1 ").split()[1])
        size, is_chunked = 0, False
        while line := self._connection.line().lower():
            name, _, value = line.partition(b":")
            if name == b"content-length":
                size = int(value)
            is_chunked |= name == b"transfer-encoding" and b"chunked" in value
        return status, self._chunks() if is_chunked else self._connection.exactly(size)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._connection.line().split(b";")[0], 16):
            body += self._connection.exactly(size)
            self._connection.line()
        self._connection.line()
        return body

    def _good(self, verb: str, path: str, *, body: bytes = b"") -> str:
        status, answer = self.request(verb, path, body=body)
        if not 200 <= status < 300:
            raise ConnectionError(f"{verb} {path}: status {status}")
        return answer.decode("utf-8", "replace")

    def ask(self, number: int) -> None:
        match self._how:
            case "counted":
                self._counted.take(self._number(self._good("GET", self._path)))
            case "same":
                same(self._good("GET", self._path), self._pattern)
            case "put":
                self._good("PUT", f"{self._path}{number}", body=b"%d\n" % number)
            case "etcd":
                self._counted.take(self._put_key(number))
            case _:
                raise ValueError(self._how)

    def _number(self, body: str) -> int:
        found = re.search(self._pattern, body)
        if not found and not self._counted.has_begun:
            return 0  # a counter that does not count its own answer yet
        if not found:
            raise ConnectionError(f"no number in {body[:80]!r}")
        return int(found[1])

    def _put_key(self, number: int) -> int:
        key, value = (base64.b64encode(word.encode()).decode() for word in (f"key/{number:08}", str(number)))
        answer = self._good("POST", "/v3/kv/put", body=json.dumps({"key": key, "value": value}).encode())
        return int(json.loads(answer)["header"]["revision"])

    def verify(self, total: int) -> None:
        match self._how:
            case "put":
                for number in range(1, total + 1):
                    same(self._good("GET", f"{self._path}{number}"), f"{number}\n")
            case "etcd":
                first, last = (base64.b64encode(word).decode() for word in (b"key/", b"key0"))
                wish = {"key": first, "range_end": last, "count_only": True}
                answer = json.loads(self._good("POST", "/v3/kv/range", body=json.dumps(wish).encode()))
                same(int(answer["count"]), total)

    def close(self) -> None:
        self._connection.close()


class Web:
    """A new connection for each request, as servers without keep-alive want it.

    text: the body that is always the same; empty: the body is a number that the program counts up.
    """

    def __init__(self, address: str, port: int, path: str, text: str) -> None:
        self._address, self._port, self._path, self._text = address, port, path, text
        self._counted = Counted()
        self.ask(1)

    def ask(self, number: int) -> None:
        connection = Connection(self._address, self._port)
        connection.send(b"GET %s HTTP/1.0\r\n\r\n" % self._path.encode())
        head, _, body = connection.rest().partition(b"\r\n\r\n")
        connection.close()
        if head.split()[1:2] != [b"200"]:
            raise ConnectionError(f"got {head[:80]!r}")
        if self._text:
            same(body.decode(), self._text)
        else:
            self._counted.take(int(body))

    def verify(self, total: int) -> None:
        """Nothing more."""

    def close(self) -> None:
        """Nothing is open."""


class Redis:
    """Numbers on a list."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)

    def ask(self, number: int) -> None:
        self._connection.send(b"RPUSH numbers %d\r\n" % number)
        same(int(self._connection.expect(b":")[1:]), number)

    def verify(self, total: int) -> None:
        self._connection.send(b"LRANGE numbers 0 -1\r\n")
        same(int(self._connection.expect(b"*")[1:]), total)
        for number in range(1, total + 1):
            self._connection.expect(b"$")
            same(int(self._connection.line()), number)

    def close(self) -> None:
        self._connection.close()


class Memcached:
    """A key for each number, and a counter."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._connection.send(b"add counter 0 0 1\r\n0\r\n")
        self._connection.line()

    def ask(self, number: int) -> None:
        self._connection.send(b"set key%d 0 0 8\r\n%08d\r\nincr counter 1\r\n" % (number, number))
        self._connection.expect(b"STORED")
        same(int(self._connection.line()), number)

    def verify(self, total: int) -> None:
        for number in range(1, total + 1):
            self._connection.send(b"get key%d\r\n" % number)
            self._connection.expect(b"VALUE")
            same(int(self._connection.line()), number)
            self._connection.expect(b"END")

    def close(self) -> None:
        self._connection.close()


class Beanstalk:
    """Puts a job, takes it, deletes it; each tenth stays, and is counted at the end."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)

    def ask(self, number: int) -> None:
        body = b"%d" % number
        if number % 10 == 0:
            self._connection.send(b"use kept\r\nput 1 0 60 %d\r\n%s\r\nuse default\r\n" % (len(body), body))
            self._connection.expect(b"USING kept")
            self._connection.expect(b"INSERTED")
            self._connection.expect(b"USING default")
            return
        self._connection.send(b"put 1 0 60 %d\r\n%s\r\nreserve-with-timeout 5\r\n" % (len(body), body))
        self._connection.expect(b"INSERTED")
        _, job, size = self._connection.expect(b"RESERVED").split()
        same(self._connection.exactly(int(size) + 2).strip(), body)
        self._connection.send(b"delete %s\r\n" % job)
        self._connection.expect(b"DELETED")

    def verify(self, total: int) -> None:
        self._connection.send(b"stats-tube kept\r\n")
        size = int(self._connection.expect(b"OK").split()[1])
        stats = self._connection.exactly(size + 2).decode()
        found = re.search(r"current-jobs-ready: (\d+)", stats)
        same(int(found[1]) if found else 0, total // 10)

    def close(self) -> None:
        self._connection.close()


class Nats:
    """Publishes a number to its own subscription."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._connection.expect(b"INFO")
        self._connection.send(b'CONNECT {"verbose":false}\r\nSUB numbers 1\r\nPING\r\n')
        self._connection.expect(b"PONG")

    def ask(self, number: int) -> None:
        body = b"%d" % number
        self._connection.send(b"PUB numbers %d\r\n%s\r\n" % (len(body), body))
        line = self._connection.line()
        while line == b"PING":
            self._connection.send(b"PONG\r\n")
            line = self._connection.line()
        if not line.startswith(b"MSG"):
            raise ConnectionError(f"got {line[:80]!r}")
        same(self._connection.line(), body)

    def verify(self, total: int) -> None:
        """Nothing more: what was delivered is gone."""

    def close(self) -> None:
        self._connection.close()


class Smtp:
    """A mail for each number.  mailbox: none; the server's own word for `queued` is the acknowledgement."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._reply(b"220")
        self._say(b"EHLO client.test", b"250")

    def _reply(self, code: bytes) -> None:
        while self._connection.expect(code)[3:4] == b"-":
            pass

    def _say(self, line: bytes, code: bytes) -> None:
        self._connection.send(line + b"\r\n")
        self._reply(code)

    def ask(self, number: int) -> None:
        self._say(b"MAIL FROM:<client@client.test>", b"250")
        self._say(b"RCPT TO:<root@localhost>", b"250")
        self._say(b"DATA", b"354")
        self._say(b"Subject: %d\r\n\r\n%d\r\n." % (number, number), b"250")

    def verify(self, total: int) -> None:
        """Nothing more."""

    def close(self) -> None:
        self._connection.close()


class Ftp:
    """A folder for each number; at the end the server's own list is counted."""

    def __init__(self, address: str, port: int, folder: str) -> None:
        self._address, self._folder = address, folder
        self._connection = Connection(address, port)
        self._connection.expect(b"220")
        self._say("USER anonymous", b"331")
        self._say("PASS client@client.test", b"230")

    def _say(self, line: str, code: bytes) -> bytes:
        self._connection.send(line.encode() + b"\r\n")
        return self._connection.expect(code)

    def ask(self, number: int) -> None:
        self._say(f"MKD {self._folder}/{number}", b"257")

    def verify(self, total: int) -> None:
        numbers = self._say("PASV", b"227").partition(b"(")[2].partition(b")")[0].split(b",")
        listing = Connection(self._address, int(numbers[4]) * 256 + int(numbers[5]))
        self._say(f"NLST {self._folder}", b"150")
        names = []
        try:
            while True:
                names.append(int(listing.line().rpartition(b"/")[2]))
        except ConnectionError:
            listing.close()
        self._connection.expect(b"226")
        same(sorted(names), list(range(1, total + 1)))

    def close(self) -> None:
        self._connection.close()


class Irc:
    """Sends numbers to a channel of its own through the server, which echoes them as PONG."""

    def __init__(self, address: str, port: int) -> None:
        self._connection = Connection(address, port)
        self._connection.send(b"NICK client\r\nUSER client 0 * :client\r\n")
        while b" 001 " not in (line := self._connection.line()):
            if line.startswith(b"PING"):
                self._connection.send(b"PONG" + line[4:] + b"\r\n")
            if b" 433 " in line:
                raise WrongAnswer("the nick is still taken")

    def ask(self, number: int) -> None:
        self._connection.send(b"PRIVMSG client :%d\r\n" % number)
        while b" PRIVMSG client :" not in (line := self._connection.line()):
            if line.startswith(b"PING"):
                self._connection.send(b"PONG" + line[4:] + b"\r\n")
        same(int(line.rpartition(b":")[2]), number)

    def verify(self, total: int) -> None:
        """Nothing more."""

    def close(self) -> None:
        self._connection.close()

# SPDX-License-Identifier: Apache-2.0
"""The program that is moved under faults, its clients outside of the hosts, and what they can prove.

The program stores numbered writes on its volume before it acknowledges them, and sends ticks (UDP) that name the host
on which it runs: by its user ids, which differ between the hosts.  Two copies that both run are seen as two ticks of one
number, or as ticks that change their host twice.
"""

import json
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from demo.hosts import CLIENT_HOST, World, inside

from insula.kernel.netlink import namespace_entered
from two_hosts import LAN, PORT

TICKS = 7001
TRY_S = 3.0
PAUSE_S = 0.01
ANSWER_S = 0.2
LIMIT_BYTES = 1 << 20

PROGRAM = f"""
import json, os, socket, threading, time
lock = threading.Lock()
log = os.open("/data/log", os.O_RDWR | os.O_APPEND | os.O_CREAT)
stored = os.read(log, 1 << 24).decode().split()
nonce = os.urandom(8).hex()
ballast = bytearray(os.urandom(6 << 20))

def add(number):
    with lock:
        line = b"%d\\n" % number
        while line:
            try:
                line = line[os.write(log, line):]
            except OSError:  # the disk is full
                time.sleep(0.05)
        os.fsync(log)
        stored.append(str(number))
        ballast[number * 4096 % len(ballast)] ^= 1

def clear():
    with lock:
        os.ftruncate(log, 0)
        stored.clear()

def serve(connection):
    with connection, connection.makefile("rwb") as file:
        for line in file:
            word, _, number = line.decode().strip().partition(" ")
            if word == "add":
                add(int(number))
                answer = [int(number), nonce]
            elif word == "clear":
                clear()
                answer = nonce
            else:
                with lock:
                    answer = [stored, nonce]
            file.write(json.dumps(answer).encode() + b"\\n")
            file.flush()

def tick():
    teller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    number = 0
    while True:
        number += 1
        with open("/proc/self/uid_map") as map:
            base = map.read().split()[1]
        try:
            teller.sendto(f"{{nonce}} {{number}} {{base}}".encode(), ("{LAN.address(CLIENT_HOST)}", {TICKS}))
        except OSError:
            pass
        time.sleep(0.01)

def quietly(connection):
    try:
        serve(connection)
    except OSError:
        pass

threading.Thread(target=tick, daemon=True).start()
listener = socket.create_server(("0.0.0.0", {PORT}), backlog=64)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=quietly, args=(connection,), daemon=True).start()
"""


class Talk:
    """One TCP connection to the program."""

    def __init__(self, world: World, address: str, *, seconds: float) -> None:
        with namespace_entered(world.outside):
            self._socket = socket.create_connection((address, PORT), timeout=seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def ask(self, words: str) -> object:
        """Say one line, hear one.  Raises: OSError."""
        self._socket.sendall(words.encode() + b"\n")
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("it hung up")
        return json.loads(line)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def ask(world: World, address: str, words: str, *, seconds: float = TRY_S) -> object:
    """Ask on a connection of its own.  Raises: OSError."""
    talk = Talk(world, address, seconds=seconds)
    try:
        return talk.ask(words)
    finally:
        talk.close()


def is_answered(world: World, address: str) -> bool:
    """Tell whether anybody has that address, and says so: to ARP's question, or for a packet to a port that nobody has."""
    flush = ("ip", "neigh", "flush", "to", address)
    subprocess.run(inside(world.outside, *flush), check=True, timeout=20)
    with namespace_entered(world.outside):
        asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asked:
        asked.settimeout(ANSWER_S)
        try:
            asked.connect((address, 9))
            asked.send(b"?")
            asked.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return True


class Writer(threading.Thread):
    """Writes numbers, each once, and keeps those that were acknowledged."""

    def __init__(self, world: World, address: str, *, first: int) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._address = address
        self._next = first
        self._over = threading.Event()
        self.acknowledged: list[int] = []
        self.problem = ""
        self.longest_gap_s = 0.0
        self.start()

    def _number(self) -> int:
        self._next += 2
        return self._next - 2

    def wait_for_more(self, count: int, *, seconds: float) -> bool:
        """Wait for so many acknowledgements from now on."""
        wanted, end = len(self.acknowledged) + count, time.monotonic() + seconds
        while len(self.acknowledged) < wanted and time.monotonic() < end and not self.problem:
            self._over.wait(PAUSE_S)
        return len(self.acknowledged) >= wanted

    def finish(self, *, seconds: float = 30.0) -> None:
        self._over.set()
        self.join(seconds)

    def write(self, talk: Talk) -> None:
        number, since = self._number(), time.monotonic()
        answer = talk.ask(f"add {number}")
        self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - since)
        if not isinstance(answer, list) or answer[0] != number:
            self.problem = f"wrote {number}, was answered {answer}"
        self.acknowledged.append(number)


class Steady(Writer):
    """On one connection, which must live through everything but the program's own end."""

    def run(self) -> None:
        try:
            talk = Talk(self._world, self._address, seconds=90.0)
            while not self._over.is_set() and not self.problem:
                self.write(talk)
                self._over.wait(PAUSE_S / 4)
            talk.close()
        except (OSError, ValueError) as error:
            self.problem = f"{type(error).__name__}: {error}"


class Returning(Writer):
    """On a new connection for each write; one that fails is not written again."""

    def run(self) -> None:
        while not self._over.is_set():
            with suppress(OSError, ValueError):
                talk = Talk(self._world, self._address, seconds=TRY_S)
                try:
                    self.write(talk)
                finally:
                    talk.close()
            self._over.wait(2 * PAUSE_S)


@dataclass(frozen=True, kw_only=True)
class Tick:
    nonce: str
    number: int
    base: str


class Listener(threading.Thread):
    """Hears the ticks."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        with namespace_entered(world.outside):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LAN.address(CLIENT_HOST), TICKS))
        self._socket.settimeout(0.2)
        self._lock = threading.Lock()
        self._heard: list[Tick] = []
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                nonce, number, base = self._socket.recv(200).decode().split()
            except TimeoutError:
                continue
            with self._lock:
                self._heard.append(Tick(nonce=nonce, number=int(number), base=base))

    def take(self) -> list[Tick]:
        """Return what was heard since the last time."""
        with self._lock:
            heard, self._heard = self._heard, []
        return heard

    def close(self) -> None:
        self._over.set()
        self.join()
        self._socket.close()


def judge_ticks(ticks: list[Tick]) -> list[str]:
    """Say where two copies were heard: a number twice, or a host to which it came back within one life.

    Two copies go on from one number, so that numbers come twice.  The order in which they are heard proves nothing: while the
    program's kernel asks for a neighbour's address its packets wait in a queue, and one that is sent at the moment of
    the answer may pass them (Linux's `neigh_update` empties the queue without the lock).
    """
    found, bases = [], dict[str, list[str]]()
    last: Tick | None = None
    for each in sorted(ticks, key=lambda tick: (tick.nonce, tick.number)):
        if last is not None and (each.nonce, each.number) == (last.nonce, last.number):
            found.append(f"tick {each.number} of {each.base} and of {last.base}: two copies")
        seen = bases.setdefault(each.nonce, [each.base])
        if seen[-1] != each.base:
            seen.append(each.base)
        last = each
    found += [f"heard from {', '.join(each)}: two copies" for each in bases.values() if len(each) > 2]
    return [*found[:2], f"{len(found)} ticks are wrong"] if found else []


def judge_writes(stored: list[str], *writers: Writer) -> list[str]:
    """Say which acknowledged writes were lost, doubled or put out of order."""
    numbers = [int(each) for each in stored]
    found = []
    if len(set(numbers)) != len(numbers):
        found.append("a write was stored twice")
    for writer in writers:
        lost = set(writer.acknowledged) - set(numbers)
        if lost:
            found.append(f"acknowledged and lost: {sorted(lost)[:5]} of {len(writer.acknowledged)}")
        mine = (
            [each for each in numbers if each % 2 == writer.acknowledged[0] % 2]
            if writer.acknowledged
            else []
        )
        if mine != sorted(mine):
            found.append("writes changed their order")
    return found

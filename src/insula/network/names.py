# SPDX-License-Identifier: Apache-2.0
"""The name server of each network, at its gateway's address, port 53 (UDP and TCP), inside the daemon.

It answers for running containers of that network (A, AAAA and PTR); all else goes to this host's own resolvers, unread, and
their answer comes back unread.  An internal network gets no answers from outside.  Wire format by dnspython.  Out of
scope: who is called what (`zone.py`), caching.  Sources: RFC 1035, 4.1 and 4.2; RFC 3596 (AAAA, ip6.arpa).
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from insula.network.zone import Served, Zone

log = logging.getLogger(__name__)

PORT = 53
#: Short, because a container that is started again may have another address.
TTL_S = 5
#: Seconds for one resolver of the host, and how many of them are tried.
RESOLVER_SECONDS = 2.0
MOST_RESOLVERS = 3
#: Questions of one network that wait for the outside at once; more are refused, so that one network cannot take all.
MOST_WAITING = 256
MOST_CONNECTIONS = 64
CONNECTION_SECONDS = 10.0
#: Questions are small; an EDNS answer may fill a datagram.
QUESTION_BYTES = 4096
ANSWER_BYTES = 65535
HEADER_BYTES = 12
IP_FREEBIND = 15

#: What an address record is asked as → the version of IP.
_VERSIONS = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}


def answer_locally(question: bytes, *, network: str, served: Served, zone: Zone) -> bytes | None:
    """Return the answer to a question as far as this host knows it; None if the outside has to be asked.

    Words that make no sense get FORMERR; those too short to be answered, and answers, an empty one: say nothing.
    """
    if len(question) < HEADER_BYTES or question[2] & 0x80:
        return b""
    try:
        query = dns.message.from_wire(question, question_only=True)
    except (dns.exception.DNSException, ValueError):
        return _refusal(question, dns.rcode.FORMERR)
    if query.opcode() != dns.opcode.QUERY:
        return _refusal(question, dns.rcode.NOTIMP)
    if len(query.question) != 1:
        return _refusal(question, dns.rcode.FORMERR)
    asked = query.question[0]
    known = _look_up(asked, network=network, served=served, zone=zone)
    if known is None:
        return _refusal(question, dns.rcode.NXDOMAIN) if served.is_internal else None
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.AA
    response.answer.extend(known.records)
    if not known.is_there:
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response.to_wire(max_size=ANSWER_BYTES)


class _Known:
    def __init__(self, records: Iterable[dns.rrset.RRset] = (), *, is_there: bool = True) -> None:
        self.records = tuple(records)
        self.is_there = is_there


def _look_up(asked: dns.rrset.RRset, *, network: str, served: Served, zone: Zone) -> _Known | None:
    if asked.rdclass != dns.rdataclass.IN:
        return None
    if asked.name.is_subdomain(dns.reversename.ipv4_reverse_domain) or asked.name.is_subdomain(
        dns.reversename.ipv6_reverse_domain
    ):
        return _look_up_address(asked, network=network, served=served, zone=zone)
    name = asked.name.to_text(omit_final_dot=True)
    addresses = zone.addresses_of(network, name)
    if addresses:
        version = _VERSIONS.get(asked.rdtype)
        found = [str(each) for each in addresses if each.version == version]
        if not found:
            return _Known()
        return _Known([dns.rrset.from_text(asked.name, TTL_S, "IN", asked.rdtype, *found)])
    # A bare word is a container or nothing: resolvers outside cannot know it.
    is_bare = len(asked.name.labels) == 2 and asked.rdtype in _VERSIONS
    return _Known(is_there=False) if is_bare else None


def _look_up_address(asked: dns.rrset.RRset, *, network: str, served: Served, zone: Zone) -> _Known | None:
    try:
        address = ip_address(dns.reversename.to_address(asked.name))
    except (dns.exception.DNSException, ValueError):
        return None
    subnet = served.subnet if address.version == 4 else served.subnet6
    if subnet is None or address not in subnet:
        return None
    name = zone.name_of(network, address)
    if name is None:
        return _Known(is_there=False)
    if asked.rdtype != dns.rdatatype.PTR:
        return _Known()
    return _Known([dns.rrset.from_text(asked.name, TTL_S, "IN", "PTR", name + ".")])


def _refusal(question: bytes, code: int) -> bytes:
    # Header only: the id, QR, the question's opcode and RD, RA, the code.
    flags = 0x80 | (question[2] & 0x79)
    return question[:2] + bytes([flags, 0x80 | int(code)]) + bytes(8)


def resolvers_of(text: str, *, own: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the name servers of a resolv.conf, except addresses of our own (a question would come back for ever)."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            if words[1] not in own:
                found.append(words[1])
    return tuple(found[:MOST_RESOLVERS])


class NameServers:
    """One server per network of the zone; they come and go with it."""

    def __init__(self, zone: Zone, *, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._zone = zone
        self._resolv_conf = resolv_conf
        self._running: dict[str, tuple[Served, AsyncExitStack]] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._zone.subscribe(lambda: None if loop.is_closed() else _signal(loop, changed))
        try:
            while True:
                changed.clear()
                await self._follow()
                await changed.wait()
        finally:
            for _, stack in self._running.values():
                await stack.aclose()
            self._running.clear()

    async def _follow(self) -> None:
        wanted = dict(self._zone.served)
        for network, (served, stack) in list(self._running.items()):
            if wanted.get(network) != served:
                del self._running[network]
                await stack.aclose()
        for network, served in wanted.items():
            if network not in self._running:
                try:
                    stack = await self._start(network, served)
                except OSError as error:
                    log.warning(
                        "name server not started",
                        extra={"fields": {"gateway": served.gateway, "reason": str(error)}},
                    )
                    continue
                self._running[network] = (served, stack)

    async def _start(self, network: str, served: Served) -> AsyncExitStack:
        answerer = _Answerer(network, served=served, zone=self._zone, resolvers=self._resolvers)
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(answerer.aclose)
            datagram = _bound(served.gateway, socket.SOCK_DGRAM)
            transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(answerer), sock=datagram)
            stack.callback(transport.close)
            stream = _bound(served.gateway, socket.SOCK_STREAM)
            server = await asyncio.start_server(answerer.converse, sock=stream, limit=QUESTION_BYTES)
            stack.callback(server.close)
            return stack.pop_all()

    def _resolvers(self) -> tuple[str, ...]:
        try:
            text = self._resolv_conf.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ()
        return resolvers_of(text, own=[each.gateway for each in self._zone.served.values()])


class _Answerer:
    """Answers of one network: from the zone, or from the host's resolvers."""

    def __init__(
        self, network: str, *, served: Served, zone: Zone, resolvers: Callable[[], tuple[str, ...]]
    ) -> None:
        self._network = network
        self._served = served
        self._zone = zone
        self._resolvers = resolvers
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answer_nowait(self, question: bytes, reply: Callable[[bytes], None]) -> None:
        """Reply now if the zone knows, else later by a task of bounded number."""
        known = answer_locally(question, network=self._network, served=self._served, zone=self._zone)
        if known is not None:
            if known:
                reply(known)
            return
        if len(self._tasks) >= MOST_WAITING:
            reply(_refusal(question, dns.rcode.SERVFAIL))
            return
        task = asyncio.get_running_loop().create_task(self._relay(question, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, question: bytes, reply: Callable[[bytes], None]) -> None:
        reply(await self._ask_outside(question, ask=_ask_by_datagram))

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer questions of one TCP connection until its end or its deadline."""
        task = asyncio.current_task()
        if task is None or len(self._tasks) >= MOST_CONNECTIONS:
            writer.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                while True:
                    question = await _read_framed(reader)
                    answer = answer_locally(
                        question, network=self._network, served=self._served, zone=self._zone
                    )
                    if answer is None:
                        answer = await self._ask_outside(question, ask=_ask_by_stream)
                    if not answer:
                        break
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError, ValueError):
            log.debug("connection ended", extra={"fields": {"gateway": self._served.gateway}})
        finally:
            writer.close()

    async def _ask_outside(self, question: bytes, *, ask: Callable[[str, bytes], Awaitable[bytes]]) -> bytes:
        for resolver in self._resolvers():
            try:
                async with asyncio.timeout(RESOLVER_SECONDS):
                    answer = await ask(resolver, question)
            except (OSError, asyncio.IncompleteReadError):
                continue
            if len(answer) >= HEADER_BYTES and answer[:2] == question[:2]:
                return answer
        return _refusal(question, dns.rcode.SERVFAIL)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answerer: _Answerer) -> None:
        self._answerer = answerer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not judged by isinstance: before Python 3.12 the event loop's own class does not inherit from it.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        def reply(answer: bytes) -> None:
            if self._transport is not None and not self._transport.is_closing():
                self._transport.sendto(answer, addr)

        if len(data) <= QUESTION_BYTES:
            self._answerer.answer_nowait(data, reply)

    def error_received(self, exc: Exception) -> None:
        log.debug("datagram refused", extra={"fields": {"reason": str(exc)}})


class _OneAnswer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _ask_by_datagram(resolver: str, question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_OneAnswer, remote_addr=(resolver, PORT))
    try:
        transport.sendto(question)
        return await protocol.answer
    finally:
        transport.close()


async def _ask_by_stream(resolver: str, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(resolver, PORT, limit=ANSWER_BYTES)
    try:
        writer.write(struct.pack("!H", len(question)) + question)
        await writer.drain()
        return await _read_framed(reader, limit_bytes=ANSWER_BYTES)
    finally:
        writer.close()


async def _read_framed(reader: asyncio.StreamReader, *, limit_bytes: int = QUESTION_BYTES) -> bytes:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    if not HEADER_BYTES <= length <= limit_bytes:
        raise ValueError(f"a message of {length} bytes")
    return await reader.readexactly(length)


def _bound(address: str, kind: int) -> socket.socket:
    # IP_FREEBIND: the bridge may get its address a moment later, or once more after it was removed by hand.
    bound = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, PORT))
    except OSError:
        bound.close()
        raise
    return bound


def _signal(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)

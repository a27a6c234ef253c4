# SPDX-License-Identifier: Apache-2.0
"""F5–F8: a host that is not who it says, says what is not so, or sends what nobody asked for."""

import contextlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hosted import wait_until
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.image.host import HOST_IMAGE
from insula.kernel.netlink import namespace_entered
from insula.migrate.wire import HEADER, Wire
from insula.model.errors import InsulaError
from insula.model.migration import (
    PROTOCOL,
    VERSION,
    Accept,
    Commit,
    Frames,
    Held,
    Message,
    Offer,
    Refuse,
    Restore,
    Resumed,
    Welcome,
)
from insula.model.record import ContainerRecord, HostRecord
from insula.runtime.store import Store
from two_hosts import Conversation, Pair, start_pair
from waiting import DEADLINE_S


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    yield from start_pair()


@contextlib.contextmanager
def alpha_speaks(pair: Pair) -> Iterator[Wire]:
    """Speak to beta as alpha's insulad would, with its key."""
    state = pair.host("alpha").folder / "state"
    store = Store(state / "db.sqlite")
    peers = PairedHosts(store, Pki(state / "pki", name="alpha"))
    try:
        with namespace_entered(pair.host("alpha").network):
            wire = Wire(peers.open(peers.find("beta")))
        try:
            yield wire
        finally:
            wire.close()
    finally:
        store.close()


def offer_of(pair: Pair, name: str) -> Offer:
    body = {"image": "host", "name": name, "network": "none", "command": ["/bin/true"]}
    pair.client("alpha").call("POST", "/v1/containers", body=body)
    record = msgspec.convert(pair.find("alpha", name), ContainerRecord)
    pair.remove(name)
    return Offer(
        version=VERSION,
        record=record,
        image=HOST_IMAGE,
        criu_version="4.0",
        kernel_release="6",
        disk_bytes=0,
        memory_bytes=0,
    )


def beta_is_clean(pair: Pair, offer: Offer) -> None:
    assert pair.client("beta").get("/v1/version")
    wait_until(
        lambda: pair.find("beta", offer.record.name) is None and not pair.traces("beta", offer.record.id),
        what="nothing of it stays",
    )


# -- F5


IMPOSTORS = ("stranger", "itself", "alpha", "no certificate")


@pytest.mark.parametrize("who", IMPOSTORS)
def test_f5_who_answers_for_the_target_is_not_it(pair: Pair, tmp_path: Path, who: str) -> None:
    """At the target's address stands somebody with another certificate."""
    own = pair.host("alpha").folder / "state/pki"
    if who == "alpha":
        shutil.copytree(own, tmp_path / "pki")
    impostor = Pki(tmp_path / "pki", name="beta" if who == "itself" else who.replace(" ", "-"))
    heard: list[bytes] = []
    with namespace_entered(pair.host("alpha").network):
        server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            plain, _ = server.accept()
            with plain, impostor.server_context().wrap_socket(plain, server_side=True) as secured:
                Wire(secured).send(Welcome())
                heard.append(secured.recv(4096))

    thread = threading.Thread(target=serve)
    thread.start()
    store = Store(pair.host("alpha").folder / "state/db.sqlite")
    try:
        real = store.get_host("beta")
        lured = msgspec.structs.replace(real, address=f"127.0.0.1:{server.getsockname()[1]}")
        peers = PairedHosts(store, Pki(own, name="alpha"))
        with namespace_entered(pair.host("alpha").network), pytest.raises(InsulaError):
            peers.open(lured).close()
    finally:
        store.close()
        server.close()
        thread.join()
    assert heard in ([], [b""])


@pytest.mark.parametrize("who", ["stranger", "no certificate", "old TLS", "plain"])
@pytest.mark.parametrize("protocol", [PROTOCOL, "http/1.1"])
def test_f5_who_asks_is_no_paired_host(pair: Pair, tmp_path: Path, who: str, protocol: str) -> None:
    store = Store(pair.host("alpha").folder / "state/db.sqlite")
    host, port = store.get_host("beta").address.rsplit(":", 1)
    store.close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    if who == "stranger":
        Pki(tmp_path / "pki", name="alpha")
        certificates = sorted((tmp_path / "pki").rglob("*cert*")) + sorted((tmp_path / "pki").rglob("*.crt"))
        keys = sorted((tmp_path / "pki").rglob("*key*"))
        context.load_cert_chain(certificates[0], keys[0])
    if who == "old TLS":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    answer = b""
    with namespace_entered(pair.host("alpha").network):
        plain = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
    with plain, contextlib.suppress(OSError):
        if who == "plain":
            plain.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = plain.recv(4096)
        else:
            with context.wrap_socket(plain) as secured:
                secured.sendall(b"GET /v1/containers?all=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = secured.recv(4096)
    assert b"Welcome" not in answer and b" 200 " not in answer.split(b"\r\n")[0], answer


# -- F6, F8: a paired host that does not keep to the rules


def _frame(kind: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


RAW: dict[str, Callable[[], bytes]] = {
    "noise": lambda: os.urandom(4096),
    "size-of-4-gigabytes": lambda: b"\x01\xff\xff\xff\xff" + bytes(64),
    "all-ones": lambda: b"\xff" * 64,
    "zeros": lambda: bytes(64),
    "json-deep": lambda: _frame(1, b"[" * 100_000),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", RAW)
def test_f8_bytes_that_are_no_message(pair: Pair, name: str) -> None:
    with alpha_speaks(pair) as wire, contextlib.suppress(OSError, InsulaError):
        wire._connection.sendall(RAW[name]())
        wire._connection.settimeout(5.0)
        wire.receive(within_s=5.0)
    assert pair.client("beta").get("/v1/version")


MESSAGES: dict[str, Message] = {
    "commit": Commit(generation=2), "restore": Restore(), "frames": Frames(), "resumed": Resumed(),
    "held": Held(), "refuse": Refuse(code="internal", message="x"), "welcome": Welcome(),
}  # fmt: skip


@pytest.mark.parametrize("first", MESSAGES)
def test_f6_message_out_of_its_turn(pair: Pair, first: str) -> None:
    with alpha_speaks(pair) as wire:
        wire.send(MESSAGES[first])
        with pytest.raises((InsulaError, OSError)):
            wire.receive(within_s=10.0)
    assert pair.client("beta").get("/v1/version")


@pytest.mark.parametrize("then", ["commit", "frames", "resumed", "offer"])
def test_f6_message_out_of_its_turn_after_an_offer(pair: Pair, then: str) -> None:
    offer = offer_of(pair, f"turn-{then}")
    with alpha_speaks(pair) as wire, contextlib.suppress(InsulaError, OSError):
        wire.send(offer)
        wire.expect(Accept)
        wire.send(offer if then == "offer" else MESSAGES[then])
        wire.send_data(bytes(100_000))
        for _ in range(3):
            wire.receive(within_s=10.0)
    beta_is_clean(pair, offer)


def test_f6_same_offer_twice_at_once(pair: Pair) -> None:
    offer = offer_of(pair, "twice")
    with alpha_speaks(pair) as one, alpha_speaks(pair) as other:
        one.send(offer)
        one.expect(Accept)
        other.send(offer)
        with pytest.raises((InsulaError, OSError)):  # refused, or not answered as long as the first one lives
            other.receive(within_s=5)
    beta_is_clean(pair, offer)


NAMES = ("../../../../tmp/x", "/etc/x", "a/b", "", "x" * 300, "a\0b")


@pytest.mark.parametrize("field", ["id", "name", "tenant", "layers"])
@pytest.mark.parametrize("value", NAMES)
def test_f8_name_that_is_a_path(pair: Pair, field: str, value: str) -> None:
    offer = offer_of(pair, "named")
    record = msgspec.structs.replace(offer.record, **{field: (value,) if field == "layers" else value})
    with alpha_speaks(pair) as wire, contextlib.suppress(OSError):
        try:
            wire.send(msgspec.structs.replace(offer, record=record))
            wire.expect(Accept)
        except InsulaError:
            return
        raise AssertionError(f"accepted with {field} {value!r}")


def test_f8_stream_without_end_is_held_to_what_was_announced(pair: Pair) -> None:
    offer = offer_of(pair, "endless")
    with alpha_speaks(pair) as wire, contextlib.suppress(InsulaError, OSError):
        wire.send(offer)
        wire.expect(Accept)
        for _ in range(200):
            wire.send_data(bytes(1 << 20))
    beta_is_clean(pair, offer)


# -- F7: the target lies


def _lie(wire: Wire, how: str) -> None:
    wire.send(Welcome())
    if how == "hangs up":
        return
    wire.receive(within_s=10.0)
    lies: dict[str, Message] = {
        "is held": Held(),
        "has resumed": Resumed(),
        "refuses": Refuse(code="target_full", message="no"),
    }
    if how == "noise":
        wire._connection.sendall(os.urandom(100_000))
    else:
        wire.send(lies[how])
    with contextlib.suppress(InsulaError, OSError):
        while True:
            wire.receive(within_s=2.0)


@pytest.mark.parametrize("how", ["hangs up", "is held", "has resumed", "refuses", "noise"])
def test_f7_target_that_lies_leaves_the_source_running(pair: Pair, how: str) -> None:
    address = pair.run("liar")
    talk = Conversation(pair.world, address)
    before = talk.count()
    beta = pair.host("beta")
    store = Store(pair.host("alpha").folder / "state/db.sqlite")
    place, port = store.get_host("beta").address.rsplit(":", 1)
    store.close()
    pair.kill_daemon("beta")
    pki, over = Pki(beta.folder / "state/pki", name="beta"), threading.Event()
    with namespace_entered(beta.network):
        server = socket.create_server((place, int(port)))
    server.settimeout(0.2)

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, InsulaError):
                plain, _ = server.accept()
                plain.settimeout(10)
                context = pki.server_context()
                context.set_alpn_protocols([PROTOCOL])
                with plain, context.wrap_socket(plain, server_side=True) as secured:
                    _lie(Wire(secured), how)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(InsulaError):
            pair.act("alpha", "liar", "migrate", target="beta")
        assert pair.status("alpha", "liar") == "running"
        assert talk.count() == before + 1
    finally:
        over.set()
        thread.join()
        server.close()
        talk.close()
        pair.restart("beta")
        pair.remove("liar")


def test_f5_token_of_a_pairing_is_good_once(pair: Pair) -> None:
    token = pair.client("beta").call("POST", "/v1/hosts/token")
    word = str(token["token"])
    assert len(word) >= 20
    assert HostRecord  # its pin is the certificate's, not the token's

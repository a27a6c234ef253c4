# SPDX-License-Identifier: Apache-2.0
"""The wire: messages and streams arrive whole; everything else is a clear error."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.migrate.wire import (
    DRAIN_SECONDS,
    HEADER,
    MAX_PAYLOAD,
    PEER_SECONDS,
    SILENCE_SECONDS,
    StreamFile,
    Wire,
    tune,
)
from insula.model.errors import MigrationFailed, NameTaken, ProtocolError
from insula.model.migration import Commit, Held, Kind, Layer, Refuse, Restore


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    near, far = socket.socketpair()
    wire = Wire(near)
    yield wire, far
    wire.close()
    far.close()


def test_messages_and_streams_arrive_in_order() -> None:
    near, far = socket.socketpair()
    sender, receiver = Wire(near), Wire(far)
    chunks = [b"a" * 10, b"b" * 1_000_000, b"", b"c"]

    def send() -> None:
        sender.send(Restore())
        sender.send_stream(chunks)
        sender.send(Commit(generation=2))

    thread = threading.Thread(target=send)
    thread.start()
    receiver.expect(Restore)
    file = StreamFile(receiver.receive_stream())
    assert file.read() == b"".join(chunks)
    assert receiver.expect(Commit).generation == 2
    thread.join()
    sender.close()
    receiver.close()


def test_a_refusal_is_raised_as_the_error_that_it_names(pair: tuple[Wire, socket.socket]) -> None:
    wire, far = pair
    Wire(far).send(Refuse(code="name_taken", message="cannot take `x`", hint="rename"))
    with pytest.raises(NameTaken, match="cannot take"):
        wire.receive()


def test_another_message_than_the_one_due_is_refused(pair: tuple[Wire, socket.socket]) -> None:
    wire, far = pair
    Wire(far).send(Held())
    with pytest.raises(ProtocolError, match="Held"):
        wire.expect(Commit)


def test_a_frame_above_the_limit_is_refused(pair: tuple[Wire, socket.socket]) -> None:
    wire, far = pair
    far.sendall(HEADER.pack(Kind.DATA, MAX_PAYLOAD + 1))
    with pytest.raises(ProtocolError, match="limit"):
        wire.receive()


@given(st.binary(max_size=200))
def test_whatever_a_peer_sends_is_a_message_or_a_named_error(noise: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(noise)
        far.shutdown(socket.SHUT_WR)
        wire = Wire(near)
        try:
            for _ in range(10):
                wire.receive()
        except (ProtocolError, MigrationFailed) as error:
            assert error.message


def test_a_target_may_take_long_for_layers_and_not_for_the_rest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    tune(near)
    source, target = Wire(near), Wire(far)

    def silence_ms() -> int:
        return near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert silence_ms() == SILENCE_SECONDS * 1000
    source.send(Layer(digest="sha256:0"))
    assert silence_ms() == PEER_SECONDS * 1000
    target.send(Held())
    source.expect(Held)
    assert silence_ms() == SILENCE_SECONDS * 1000
    source.close()
    target.close()


def test_two_who_refuse_each_other_do_not_wait_for_each_other() -> None:
    near, far = socket.socketpair()
    wires = Wire(near), Wire(far)
    threads = []
    for wire in wires:
        wire.send(Refuse(code="cancelled", message="no more"))
        threads.append(threading.Thread(target=wire.drain, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DRAIN_SECONDS / 2)
    assert not any(thread.is_alive() for thread in threads)
    for wire in wires:
        wire.close()


def test_a_message_that_comes_byte_by_byte_is_waited_for_only_so_long(
    pair: tuple[Wire, socket.socket],
) -> None:
    wire, far = pair
    over = threading.Event()

    def dribble() -> None:
        far.sendall(HEADER.pack(Kind.MESSAGE, MAX_PAYLOAD))
        while not over.wait(0.01):
            far.sendall(b" ")

    thread = threading.Thread(target=dribble)
    thread.start()
    with pytest.raises(MigrationFailed, match="cannot hear"):
        wire.receive(within_s=0.2)
    over.set()
    thread.join()

# SPDX-License-Identifier: Apache-2.0
"""Packet sockets that send whole frames out of one interface, and whose end nobody has to wait for.

Closing a packet socket waits until every processor has passed a quiet point (`synchronize_net` in packet_release): about
10 ms, which in the pause of a migration is a fifth of it.  So a thread closes them.  Source: packet(7); `net/packet/af_packet.c`.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sender(interface: str) -> Iterator[socket.socket]:
    """Give a socket that sends out of an interface of the calling thread's network namespace.

    Raises: OSError naming the interface: ENODEV, ENETDOWN.
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        bind(made, interface, protocol=0)
        yield made
    finally:
        close_later(made)


def bind(packet_socket: socket.socket, interface: str, *, protocol: int) -> None:
    """Tie a packet socket to an interface.  Raises: OSError naming it."""
    try:
        packet_socket.bind((interface, protocol))
    except OSError as error:
        raise OSError(error.errno, f"bind: {os.strerror(error.errno or 0)}", interface) from None


def close_later(packet_socket: socket.socket) -> None:
    """Close a packet socket without waiting for it."""
    threading.Thread(target=packet_socket.close, name="close", daemon=True).start()

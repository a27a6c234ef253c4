# SPDX-License-Identifier: Apache-2.0
"""Two ends of a TCP connection between two network namespaces, over a link of a chosen rate."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from insula.migrate.wire import Wire
from netns import World, connect, listener

HOST, PEER, PORT = "10.97.0.1", "10.97.0.2", 7001


@contextmanager
def link(world: World, *, rate: str) -> Iterator[tuple[Wire, Wire]]:
    """Connect the host with a neighbour.  rate: as tc(8) has it; empty: as fast as it goes."""
    beyond = world.outside(host_address=HOST, address=PEER)
    if rate:
        words = ["root", "tbf", "rate", rate, "burst", "64k", "latency", "100ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", "wan0", *words], check=True, timeout=20)
    with listener(beyond, port=PORT) as server:
        near = connect(world.host, PEER, port=PORT)
        far, _ = server.accept()
    with near, far:
        yield Wire(near), Wire(far)


def carry(sender: Wire, receiver: Wire, *, pieces: list[bytes]) -> bool:
    """Send a stream through, to its end.  Returns: it arrived as it was."""
    thread = threading.Thread(target=sender.send_stream, args=(pieces,))
    thread.start()
    arrived = b"".join(receiver.receive_stream())
    thread.join()
    return arrived == b"".join(pieces)

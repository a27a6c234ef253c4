# SPDX-License-Identifier: Apache-2.0
"""How fast a migration's connection is between two processes of this machine: bytes and round trips.

The receiver is a process with insulad's own door for other hosts (`daemon/door.py`), TLS and all.

    python bench/wire.py [MEGABYTES]

Exit codes: 0 measured.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiohttp import web

from bench.figures import bench_line, percentile
from insula.daemon.arrivals import Arrivals
from insula.daemon.door import HostDoor
from insula.daemon.listen import open_listeners
from insula.daemon.peers import PairedHosts
from insula.daemon.pki import Pki
from insula.migrate.wire import Socket, Wire
from insula.model.errors import InsulaError
from insula.model.grant import Grant
from insula.model.migration import Held, Restore
from insula.model.record import HostRecord
from insula.runtime.store import Store
from insula.tenant.audit import Audit

MEGABYTES = 256
ROUND_TRIPS = 500
WARM_UP = 20
PIECES = {"16 KiB": 16 << 10, "64 KiB": 64 << 10, "512 KiB": 512 << 10, "1 MiB": 1 << 20}


def serve(_grant: Grant, connection: Socket) -> None:
    """Answer each `Restore` by a `Held` when the stream behind it has come."""
    wire = Wire(connection)
    try:
        while True:
            wire.expect(Restore)
            for _piece in wire.receive_stream():
                pass
            wire.send(Held())
    except InsulaError:  # the sender has hung up
        wire.close()


def receiver(folder: Path, pem: str, *, pipe: Connection) -> None:
    """The other host, until it is told to end."""

    async def main() -> None:
        pki, store = Pki(folder / "in", name="alpha"), Store(folder / "in.sqlite")
        pin = pki.trust(pem)
        store.save_host(HostRecord(name="beta", address="127.0.0.1:1", fingerprint=pin, added_at=1.0))
        listeners = open_listeners("127.0.0.1:0")
        runner = web.AppRunner(web.Application())
        await runner.setup()
        context = pki.server_context()
        audit = Audit(folder / "audit")
        arrivals = Arrivals(context, find_host=store.find_host_by_fingerprint, audit=audit, serve=serve)
        door = HostDoor(listeners, runner=runner, context=context, arrivals=arrivals)
        pipe.send((pki.certificate_pem, listeners[0].getsockname()[1]))
        await asyncio.to_thread(pipe.recv)
        await door.close()
        await runner.cleanup()

    sys.setswitchinterval(0.0005)  # as insulad
    asyncio.run(main())


def send(wire: Wire, *, size: int, piece: int) -> float:
    """Send so many bytes; returns the seconds until all were answered."""
    data = os.urandom(piece)

    def chunks() -> Iterator[bytes]:
        for _ in range(size // piece):
            yield data

    since = time.perf_counter()
    wire.send(Restore())
    wire.send_stream(chunks())
    wire.expect(Held)
    return time.perf_counter() - since


def measure(wire: Wire, *, size: int) -> dict[str, float]:
    found: dict[str, float] = {}
    send(wire, size=size // 4, piece=1 << 20)
    for name, piece in PIECES.items():
        found[f"pieces of {name}, MB/s"] = round(size / send(wire, size=size, piece=piece) / 1e6)
    trips = [send(wire, size=0, piece=1) * 1000 for _ in range(ROUND_TRIPS)][WARM_UP:]
    found["round trip p50, ms"] = round(percentile(trips, 50), 3)
    found["round trip p99, ms"] = round(percentile(trips, 99), 3)
    return found


def main() -> int:
    size = int(sys.argv[1] if len(sys.argv) > 1 else MEGABYTES) << 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki, store = Pki(folder / "out", name="beta"), Store(folder / "out.sqlite")
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=receiver, args=(folder, pki.certificate_pem), kwargs={"pipe": theirs}
        )
        process.start()
        pem, port = ours.recv()
        pin = pki.trust(pem)
        host = HostRecord(name="alpha", address=f"127.0.0.1:{port}", fingerprint=pin)
        connection = PairedHosts(store, pki).open(host)
        figures = measure(Wire(connection), size=size)
        connection.close()
        ours.send(None)
        process.join()
        store.close()
    for words, value in figures.items():
        print(f"{words:>28} {value:>9}")
    print(bench_line(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

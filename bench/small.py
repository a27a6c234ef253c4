# SPDX-License-Identifier: Apache-2.0
"""Many idle small containers, drained one after the other and four at once: time for each, longest wait of any client.

Each is a Python that counts bytes on a TCP port; a client keeps a connection to each and asks ten times a second
(`small_client.py`).  They stand in one /24: the bridge of a host takes 1023 ports at most, the network 240 addresses.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from demo import check
from demo.clients import ClientProcess
from demo.hosts import Host, World

from bench.moving import LAN, Found, Goal, PartFailed, PartMissing, Row, follow, two_hosts, wait
from insula.client.http import Client

PROGRAM = Path(__file__).with_name("small_client.py")
SERVER = """
import socket
count = 0
listener = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = listener.accept()
    try:
        while data := connection.recv(4096):
            for _ in data:
                count += 1
                connection.send(b"%d\\n" % count)
    except OSError:
        pass
"""
PORT = 7000
FIRST = 5
MOST = 240
SETTLE_S = 1.0
AT_ONCE = 4
GOAL = Goal(max_ms=250)


@dataclass(frozen=True, kw_only=True)
class Emptied:
    """A drain of all containers."""

    words: str
    seconds_each: float
    worst_ms: float
    median_ms: float
    """Of each container's longest wait."""


def start_all(client: Client, *, count: int, python: str) -> None:
    """Start the servers, one after the other."""
    for number in range(count):
        spec = {
            "image": "host",
            "name": f"small{number}",
            "command": (python, "-IS", "-c", SERVER),
            "network": "lan",
            "address": LAN.address(FIRST + number),
        }
        made = client.call("POST", "/v1/containers", body=spec)
        client.call("POST", f"/v1/containers/{made['id']}/start")


def act(asked: ClientProcess, host: Host, *, verb: str, count: int, parallel: int = 1) -> Emptied:
    """Drain a host or fill it again under the client's eyes.  Raises: InsulaError, PartFailed."""
    wait(SETTLE_S)
    asked.take("gap")
    client = host.client()
    body = {"parallel": parallel} if verb == "drain" else None
    began = time.monotonic()
    result = follow(client, client.call("POST", f"/v1/host/{verb}", body=body))
    seconds = time.monotonic() - began
    wait(SETTLE_S)
    if result.get("moved") != count:
        raise PartFailed(f"{verb} moved {result.get('moved')} of {count} containers")
    gaps = asked.take("gap")
    done = Emptied(
        words=f"{verb}, {parallel} at a time",
        seconds_each=seconds / count,
        worst_ms=float(str(gaps["gap_ms"])),
        median_ms=float(str(gaps["median_ms"])),
    )
    print(
        f"{done.words}: {seconds:.1f} s, {done.seconds_each * 1000:.0f} ms for each of {count};"
        f" longest wait of each: median {done.median_ms:.0f} ms, worst {done.worst_ms:.0f} ms",
        flush=True,
    )
    return done


def measure(world: World, *, count: int, python: str) -> tuple[list[Emptied], int]:
    """Drain, fill again, drain four at once; returns these, and how many answers failed or were wrong."""
    host = world.hosts["alpha"]
    start_all(host.client(), count=count, python=python)
    words = (str(PROGRAM), LAN.prefix, str(FIRST), str(count), str(PORT))
    asked = ClientProcess("small", *words, network=world.outside)
    asked.wait_ready()
    done = [
        act(asked, host, verb="drain", count=count),
        act(asked, host, verb="undrain", count=count),
        act(asked, host, verb="drain", count=count, parallel=AT_ONCE),
    ]
    outcome = asked.finish()
    if outcome.reason:
        print(f"bench: a client saw: {outcome.reason}", flush=True)
    return done, outcome.failed + outcome.lost


def run(*, count: int) -> Found:
    """Measure with so many containers.  Raises: PartFailed, PartMissing."""
    python = check.python_of_host()
    if python is None:
        raise PartMissing("a `python3` below /usr")
    count = min(count, MOST)
    with two_hosts() as world:
        done, failed = measure(world, count=count, python=python)
    return Found(rows=rows(done, count=count, failed=failed), facts=facts(done, count=count))


def rows(done: list[Emptied], *, count: int, failed: int) -> list[Row]:
    """Return a line for each drain: the median of each container's longest wait, and the worst of all.

    What failed stands in the first, as the client does not tell them apart.
    """
    return [
        Row(
            load=f"{count} small, {each.words}, {each.seconds_each * 1000:.0f} ms each",
            gaps_ms=[each.median_ms, each.median_ms, each.worst_ms],
            failed=0 if number else failed,
            goal=GOAL,
        )
        for number, each in enumerate(done)
    ]


def facts(done: list[Emptied], *, count: int) -> dict[str, object]:
    """Return the facts for machines."""
    one, _, four = done
    return {
        "small200_gap_max_ms": round(max(each.worst_ms for each in done), 1),
        "small200_count": count,
        "small200_one_by_one_ms_each": round(one.seconds_each * 1000, 1),
        "small200_four_at_once_ms_each": round(four.seconds_each * 1000, 1),
        "small200_one_by_one_gap_max_ms": round(one.worst_ms, 1),
        "small200_four_at_once_gap_max_ms": round(four.worst_ms, 1),
    }

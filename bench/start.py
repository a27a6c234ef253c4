# SPDX-License-Identifier: Apache-2.0
"""How long create + start + exit takes: insula by its API and by its CLI, beside crun, runc, bwrap and podman.

All run /bin/true, one after the other in turns, in one run on one machine: judge the ratios, never the milliseconds.
By the API: POST create, POST attach?start=1, frames until EXIT, GET wait, DELETE; each a connection of its own, as the CLI does it.

    python bench/start.py [ROUNDS]

Exit codes: 0 measured; 1 insula failed; 3 something is missing on this machine.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import check, cleanup, users
from demo.hosts import Host, World, tail
from demo.report import align
from demo.users import CommandFailed, User

from bench import peers
from bench.figures import bench_line, percentile, ratio
from insula.client.http import Client
from insula.model import stream
from insula.model.errors import InsulaError, from_code

ROUNDS = 50
WARM_UP = 3
IMAGE = "host"
EXIT_FAILED, EXIT_MISSING = 1, 3


def run_by_api(client: Client) -> None:
    """Create, start, see the end and delete one container.  Raises: InsulaError, CommandFailed."""
    spec = {"image": IMAGE, "command": [peers.PROGRAM], "network": "none"}
    where = f"/v1/containers/{client.call('POST', '/v1/containers', body=spec)['id']}"
    attached = client.upgrade(f"{where}/attach", query={"start": "1"})
    try:
        _wait_exit(attached.connection.recv, first=attached.first)
    finally:
        attached.close()
    client.get(f"{where}/wait", {"condition": "exited"})
    client.call("DELETE", where)


def _wait_exit(receive: Callable[[int], bytes], *, first: bytes) -> None:
    reader, data = stream.FrameReader(), first
    while True:
        for kind, payload in reader.feed(data):
            if kind == stream.EXIT:
                return
            if kind == stream.ERROR:
                raise from_code("internal", payload.decode(errors="replace"))
        data = receive(65536)
        if not data:
            raise CommandFailed("insulad closed the connection before the program ended")


def run_by_cli(user: User, host: Host) -> None:
    """Run one container as a person does."""
    user.run(host.socket, "run", "--rm", "--network", "none", IMAGE, peers.PROGRAM)


def timed_ms(action: Callable[[], None]) -> float:
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1000


def measure(world: World, *, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each subject, all in turns."""
    host = world.hosts["alpha"]
    root = users.administrator(users.install_program(world.folder))
    client = host.client()
    subjects: dict[str, Callable[[], None]] = {
        "insula API": lambda: run_by_api(client),
        "insula CLI": lambda: run_by_cli(root, host),
    }
    with ExitStack() as stack:
        for peer in peers.prepare(world.folder):
            stack.callback(peer.end)
            if peer.words:
                print(f"bench: {peer.name} is not measured: {peer.words}", flush=True)
            else:
                subjects[peer.name] = peer.run
        samples: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(-WARM_UP, rounds):
            for name, action in subjects.items():
                taken = timed_ms(action)
                if number >= 0:
                    samples[name].append(taken)
    return samples


def report(samples: dict[str, list[float]]) -> str:
    """Return the table and the last line."""
    p50 = {name: percentile(each, 50) for name, each in samples.items()}
    p99 = {name: percentile(each, 99) for name, each in samples.items()}
    rows = [("create + start + exit", "p50 ms", "p99 ms", "n")]
    rows += [(name, f"{p50[name]:.1f}", f"{p99[name]:.1f}", str(len(each))) for name, each in samples.items()]
    names = tuple(peers.PACKAGES)
    api, cli = p50["insula API"], p50["insula CLI"]
    ratios = [
        f"  insula ÷ {name}: API {ratio(api, p50[name])}, CLI {ratio(cli, p50[name])}"
        for name in names
        if name in p50
    ]
    facts = {
        "api_p50_ms": round(api, 2),
        "api_p99_ms": round(p99["insula API"], 2),
        "api_vs_crun": ratio(api, p50.get("crun")),
        "cli_p50_ms": round(cli, 2),
        "cli_vs_podman": ratio(cli, p50.get("podman")),
        "peers": {name: round(p50[name], 2) if name in p50 else None for name in names},
    }
    return "\n".join([*align(rows), *ratios, bench_line(facts)])


def main(words: list[str]) -> int:
    """Measure on one host that is made for it."""
    if check.refuse("bench"):
        return EXIT_MISSING
    rounds = int(words[0]) if words else ROUNDS
    peers.install()
    with cleanup.alone("bench"), World(names=("alpha",)) as world:
        try:
            users.make((), program=Path())
            world.start()
            samples = measure(world, rounds=rounds)
        except (CommandFailed, InsulaError, OSError, peers.PeerFailed) as error:
            print(f"bench: {error}\n{tail(world.hosts['alpha'])}", file=sys.stderr)
            return EXIT_FAILED
        finally:
            users.remove(())
    print(report(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
